"""Attention inside windows, attention between overlapping windows, and attention over channels."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.blocks import strips
from hatlib.blocks.group import init_linear
from hatlib.blocks.softmax_attention import attend
from hatlib.blocks.strips import cpu_strips
from hatlib.blocks.window import (
    check_window_multiple,
    cyclic_shift,
    overlap_relative_position_index,
    overlap_window_partition,
    overlap_window_size,
    relative_position_index,
    shifted_window_mask,
    shifted_window_regions,
    split_window_kinds,
    window_kinds,
    window_partition,
    window_reverse,
)
from hatlib.errors import HatlibError
from hatlib.registry import attentions, check_options, register_attention

__all__ = ["ChannelAttention", "OverlapCrossAttention", "WindowAttention", "create_attention"]

Projection = Callable[[Tensor], Tensor]


class RelativePositionAttention(nn.Module):
    """What both window attentions share: projections, heads, and the relative position bias.

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        rows: rows of the bias table.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; head width ** -0.5 if None.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, *, rows: int, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        if dim % num_heads:
            raise HatlibError(
                f"{dim} channels cannot be divided among num_heads={num_heads}; choose a divisor of {dim}."
            )
        self.dim = dim
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        init_linear(self)

    def position_bias(self) -> Tensor:
        """The bias of each head and pair of query and key: (num_heads, N, M).

        Looked up at every call: a cached bias would be stale after the table is loaded or trained.
        """
        table, index = self.relative_position_bias_table.t().contiguous(), self.relative_position_index
        return table.gather(1, index.flatten().expand(len(table), -1)).unflatten(1, index.shape)


@register_attention("window")
class WindowAttention(RelativePositionAttention):
    """Multi-head self-attention in (shifted) windows with relative position bias: W-MSA and SW-MSA.

    In each window Attention(Q, K, V) = softmax(Q K^T / sqrt(d) + B) V. HAT, section 3.2.2; Swin Transformer,
    arXiv 2103.14030, equation 4. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        window_size: side of the window in pixels; H and W are multiples of it.
        shift_size: cyclic shift in pixels, 0 for W-MSA and window_size // 2 for SW-MSA.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; head width ** -0.5 if None.
        attn_drop: dropout of attention weights.
        proj_drop: dropout of the result.

    Raises:
        HatlibError: if `num_heads` does not divide `dim`, or the shift is not smaller than the window.

    Example:
        >>> import torch
        >>> from hatlib.blocks import WindowAttention
        >>> WindowAttention(16, 2, window_size=8, shift_size=4)(torch.rand(1, 16, 24, 16)).shape
        torch.Size([1, 16, 24, 16])
    """

    shift_regions: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        shift_size: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        if not 0 <= shift_size < window_size:
            raise HatlibError(f"shift_size={shift_size} must lie in [0, window_size={window_size}).")
        super().__init__(dim, num_heads, rows=(2 * window_size - 1) ** 2, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.window_size = window_size
        self.shift_size = shift_size
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the index buffers, which no checkpoint holds (the hook that timm and transformers call)."""
        device = self.relative_position_bias_table.device
        index = relative_position_index(self.window_size)
        self.register_buffer("relative_position_index", index.to(device), persistent=False)
        if self.shift_size:
            regions = shifted_window_regions(self.window_size, self.shift_size)
            self.register_buffer("shift_regions", regions.to(device), persistent=False)

    @cpu_strips(strips.window_attention)
    def forward(self, x: Tensor) -> Tensor:
        check_window_multiple(x, self.window_size)
        bias = self.position_bias()
        if not self.shift_size:
            return self.attend(x, bias, self.qkv, self.proj)
        x = cyclic_shift(x, self.shift_size)
        x = self.attend_shifted(x, bias, shifted_window_mask(self.shift_regions, bias.dtype))
        return cyclic_shift(x, -self.shift_size)

    def attend(self, x: Tensor, bias: Tensor, qkv: Projection, proj: Projection) -> Tensor:
        """softmax(Q K^T / sqrt(d) + bias) V in the windows of a map, with the same bias for all or one for each."""
        height, width = x.shape[1:3]
        windows = qkv(window_partition(x, self.window_size))
        q, k, v = rearrange(windows, "w n (qkv h d) -> qkv w h n d", qkv=3, h=self.num_heads)
        y = attend(q, k, v, bias, scale=self.scale, dropout=self.attn_drop if self.training else 0.0)
        y = self.proj_drop(proj(rearrange(y, "w h n d -> w n (h d)")))
        return window_reverse(y, self.window_size, height, width)

    def attend_shifted(self, x: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        """`attend` in a shifted map, with the mask (4, N, N) of each of the four kinds of windows."""
        w = self.window_size
        if torch.compiler.is_compiling():  # a traced graph cannot divide the map by its size
            kinds = window_kinds(x.shape[1] // w, x.shape[2] // w, x.device).flatten()
            return self.attend(x, (bias + mask[:, None])[kinds].repeat(x.shape[0], 1, 1, 1), self.qkv, self.proj)
        inner, right, bottom, corner = (
            self.attend(part, bias if kind == 0 else bias + mask[kind], self.qkv, self.proj) if part.numel() else part
            for kind, part in enumerate(split_window_kinds(x, w))
        )
        return torch.cat([torch.cat([inner, right], 2), torch.cat([bottom, corner], 2)], 1)


def create_attention(
    spec: Any, *, dim: int, num_heads: int, window_size: int, shift_size: int, **builtin: Any
) -> nn.Module:
    """Builds the attention that `attn_layer=` asks for.

    Args:
        spec: a registered name, `{name: options}`, or a class or function.
        dim: channels.
        num_heads: attention heads.
        window_size: side of the window in pixels.
        shift_size: cyclic shift in pixels.
        **builtin: options of `WindowAttention` that the block has arguments of its own for.

    Raises:
        HatlibError: if there is no such attention, or an option of `WindowAttention` is set for another attention.
    """
    context = dict(dim=dim, num_heads=num_heads, window_size=window_size, shift_size=shift_size)
    if isinstance(spec, nn.Module):
        raise HatlibError("attn_layer is an object, which the blocks would share; pass its class or a registered name.")
    part, options = attentions.resolve(spec)
    if part is WindowAttention:
        check_options(part, options, "The attention 'window'", reserved=context)
        return WindowAttention(**{**context, **builtin, **options})
    defaults = dict(qkv_bias=True, qk_scale=None, attn_drop=0.0)
    if changed := [name for name, default in defaults.items() if builtin.get(name, default) != default]:
        raise HatlibError(
            f"{changed[0]}={builtin[changed[0]]} belongs to the attention 'window'; give options of another attention "
            "in its spec: attn_layer={name: {option: value}}."
        )
    return attentions.create(spec, **context)


class OverlapCrossAttention(RelativePositionAttention):
    """Cross-attention from each window to the larger window around it, with relative position bias (OCA).

    Queries come from windows of side w, keys and values from windows of side (1 + overlap_ratio) * w with the same
    center. Pixels beyond the border are zero and are attended to as well. HAT, section 3.2.3.
    (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads; divides `dim`.
        window_size: side of the query window in pixels; H and W are multiples of it.
        overlap_ratio: the paper's gamma.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; head width ** -0.5 if None.

    Raises:
        HatlibError: if `num_heads` does not divide `dim`, or the windows cannot have the same center.

    Example:
        >>> import torch
        >>> from hatlib.blocks import OverlapCrossAttention
        >>> OverlapCrossAttention(16, 2, window_size=8)(torch.rand(1, 16, 24, 16)).shape
        torch.Size([1, 16, 24, 16])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        overlap_ratio: float = 0.5,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
    ):
        overlap_size = overlap_window_size(window_size, overlap_ratio)
        rows = (window_size + overlap_size - 1) ** 2
        super().__init__(dim, num_heads, rows=rows, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.window_size = window_size
        self.overlap_size = overlap_size
        self.pad = (overlap_size - window_size) // 2
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the index buffer, which no checkpoint holds (the hook that timm and transformers call)."""
        index = overlap_relative_position_index(self.window_size, self.overlap_size)
        device = self.relative_position_bias_table.device
        self.register_buffer("relative_position_index", index.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)

    @cpu_strips(strips.overlap_cross_attention)
    def attention(self, x: Tensor) -> Tensor:
        """The attention alone, for subclasses that add to `forward`. (B, H, W, C) -> (B, H, W, C)."""
        check_window_multiple(x, self.window_size)
        q, kv = self.qkv(x).split([self.dim, 2 * self.dim], dim=-1)
        kv = F.pad(kv, (0, 0, self.pad, self.pad, self.pad, self.pad))
        return self.attend(q, kv, self.position_bias(), self.proj)

    def attend(self, q: Tensor, kv: Tensor, bias: Tensor, proj: Projection) -> Tensor:
        """softmax(Q K^T / sqrt(d) + bias) V from the windows of q to the overlapping windows of kv.

        Args:
            q: queries, (B, H, W, C).
            kv: keys and values with a border of `pad` pixels, (B, H + 2 pad, W + 2 pad, 2 C).
            bias: (num_heads, w * w, o * o).
            proj: the projection after attention.

        Returns:
            (B, H, W, C)
        """
        height, width = q.shape[1:3]
        q = rearrange(window_partition(q, self.window_size), "w n (h d) -> w h n d", h=self.num_heads)
        kv = overlap_window_partition(kv, self.window_size, self.overlap_size)
        k, v = rearrange(kv, "w m (kv h d) -> kv w h m d", kv=2, h=self.num_heads)
        y = attend(q, k, v, bias, scale=self.scale)
        return window_reverse(proj(rearrange(y, "w h n d -> w n (h d)")), self.window_size, height, width)


class ChannelAttention(nn.Module):
    """Scales each channel by a factor computed from the mean of the whole map (squeeze and excitation).

    RCAN, arXiv 1807.02758, section 3.3; HAT, section 3.2.2. (B, C, H, W) -> (B, C, H, W).

    Args:
        num_feat: channels C.
        squeeze_factor: C / squeeze_factor is the inner width.
        inplace: overwrite the input in eager inference on a CPU.

    Example:
        >>> import torch
        >>> from hatlib.blocks import ChannelAttention
        >>> ChannelAttention(32, 8)(torch.rand(1, 32, 9, 7)).shape
        torch.Size([1, 32, 9, 7])
    """

    def __init__(self, num_feat: int, squeeze_factor: float = 16, *, inplace: bool = False):
        super().__init__()
        self.inplace = inplace
        inner = inner_width(num_feat, squeeze_factor, "squeeze_factor")
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, num_feat, 1),
            nn.Sigmoid(),
        )

    @cpu_strips(strips.channel_attention)
    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


def inner_width(dim: int, ratio: float, name: str) -> int:
    """Channels of a bottleneck that is `ratio` times narrower than `dim`.

    Raises:
        HatlibError: if no channel is left.
    """
    inner = int(dim // ratio)
    if inner < 1:
        raise HatlibError(f"{name}={ratio} leaves no channel of {dim}; it must be {dim} or less.")
    return inner
