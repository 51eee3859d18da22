"""Attention inside windows, attention between overlapping windows, and attention over channels."""

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.blocks.window import (
    check_window_multiple,
    overlap_relative_position_index,
    overlap_window_partition,
    overlap_window_size,
    relative_position_index,
    shifted_window_regions,
    window_kinds,
    window_partition,
    window_reverse,
)
from hatlib.errors import HatlibError

__all__ = ["ChannelAttention", "OverlapCrossAttention", "WindowAttention", "attend"]

# What the published networks add to the logit of a pair of tokens that the cyclic shift has brought together.
SHIFT_PENALTY = -100.0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    kinds: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T + bias) v, the one place of softmax attention in the library.

    Args:
        q: queries, (W, heads, N, d): W windows of all images.
        k: keys, (W, heads, M, d).
        v: values, (W, heads, M, d).
        bias: additive logits, (heads, N, M), or one for each kind of window, (K, heads, N, M).
        kinds: which bias each window of an image takes, (rows, columns), as `window_kinds` gives them.
        scale: factor of the logits, d ** -0.5 by default.
        dropout: probability of dropping an attention weight.

    Returns:
        (W, heads, N, d)
    """
    bias = bias.to(q.dtype)
    if kinds is not None:
        images = q.shape[0] // kinds.numel()
        bias = bias[kinds.flatten()].repeat(images, 1, 1, 1)
    if torch.compiler.is_exporting():
        # Spelt out, because the memory layout of the fused kernel's result does not survive the way to ONNX.
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return ((q * scale) @ k.mT + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Looks up the relative-position bias: table (rows, heads), index (N, M) -> (heads, N, M).

    Looked up anew at every call: a cache would go stale when the table is loaded or trained.
    """
    return table.t().index_select(1, index.flatten()).unflatten(1, index.shape)


class WindowAttention(nn.Module):
    """Multi-head self-attention in (shifted) windows with relative position bias: W-MSA and SW-MSA.

    HAT, section 3.2.2; Swin Transformer, arXiv 2103.14030. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        window_size: side of the window in pixels; H and W are multiples of it.
        num_heads: attention heads; divides `dim`.
        shift_size: cyclic shift in pixels, 0 for W-MSA and window_size // 2 for SW-MSA.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; head width ** -0.5 by default.
        attn_drop: dropout of attention weights.
        proj_drop: dropout of the result.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        shift_size: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if not 0 <= shift_size < window_size:
            raise HatlibError(f"shift_size={shift_size} must lie in [0, window_size={window_size}).")
        self.dim = dim
        self.window_size = window_size
        self.num_heads = num_heads
        self.shift_size = shift_size
        self.scale = qk_scale or head_width(dim, num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the index buffers, which no checkpoint holds (the hook that timm and transformers call)."""
        device = self.relative_position_bias_table.device
        index = relative_position_index(self.window_size)
        self.register_buffer("relative_position_index", index.to(device), persistent=False)
        if self.shift_size:
            regions = shifted_window_regions(self.window_size, self.shift_size)
            self.register_buffer("shift_regions", regions.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_window_multiple(x, self.window_size)
        height, width = x.shape[1:3]
        bias, kinds = position_bias(self.relative_position_bias_table, self.relative_position_index), None
        if self.shift_size:
            x = x.roll((-self.shift_size, -self.shift_size), (1, 2))
            apart = self.shift_regions[:, None, :, None] != self.shift_regions[:, None, None, :]
            bias = bias + apart.to(bias.dtype) * SHIFT_PENALTY
            kinds = window_kinds(height // self.window_size, width // self.window_size, x.device)
        qkv = self.qkv(window_partition(x, self.window_size))
        q, k, v = rearrange(qkv, "w n (qkv h d) -> qkv w h n d", qkv=3, h=self.num_heads)
        x = attend(q, k, v, bias, kinds=kinds, scale=self.scale, dropout=self.attn_drop if self.training else 0.0)
        x = self.proj_drop(self.proj(rearrange(x, "w h n d -> w n (h d)")))
        x = window_reverse(x, self.window_size, height, width)
        return x.roll((self.shift_size, self.shift_size), (1, 2)) if self.shift_size else x


class OverlapCrossAttention(nn.Module):
    """Cross-attention from each window to the larger window around it, with relative position bias (OCA).

    Queries come from windows of side w, keys and values from windows of side (1 + overlap_ratio) * w with the same
    centre; what lies beyond the border is zero and is attended to as well. HAT, section 3.2.3.
    (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        window_size: side of the query window in pixels; H and W are multiples of it.
        overlap_ratio: the paper's gamma.
        num_heads: attention heads; divides `dim`.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits; head width ** -0.5 by default.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        overlap_ratio: float,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
    ):
        super().__init__()
        self.dim = dim
        self.window_size = window_size
        self.overlap_size = overlap_window_size(window_size, overlap_ratio)
        self.num_heads = num_heads
        self.scale = qk_scale or head_width(dim, num_heads) ** -0.5
        rows = (window_size + self.overlap_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the index buffer, which no checkpoint holds (the hook that timm and transformers call)."""
        device = self.relative_position_bias_table.device
        index = overlap_relative_position_index(self.window_size, self.overlap_size)
        self.register_buffer("relative_position_index", index.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)

    def attention(self, x: Tensor) -> Tensor:
        """The attention itself, apart from what a subclass makes of it. (B, H, W, C) -> (B, H, W, C)."""
        check_window_multiple(x, self.window_size)
        height, width = x.shape[1:3]
        q, kv = self.qkv(x).split([self.dim, 2 * self.dim], dim=-1)
        q = rearrange(window_partition(q, self.window_size), "w n (h d) -> w h n d", h=self.num_heads)
        kv = overlap_window_partition(kv, self.window_size, self.overlap_size)
        k, v = rearrange(kv, "w m (kv h d) -> kv w h m d", kv=2, h=self.num_heads)
        bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
        x = attend(q, k, v, bias, scale=self.scale)
        return window_reverse(self.proj(rearrange(x, "w h n d -> w n (h d)")), self.window_size, height, width)


class ChannelAttention(nn.Module):
    """Weighs each channel by what the whole map holds (squeeze and excitation). (B, C, H, W) -> (B, C, H, W).

    RCAN, arXiv 1807.02758, section 3.3; HAT, section 3.2.2.

    Args:
        num_feat: channels C.
        squeeze_factor: C / squeeze_factor is the inner width.
    """

    def __init__(self, num_feat: int, squeeze_factor: float = 16):
        super().__init__()
        inner = inner_width(num_feat, squeeze_factor, "squeeze_factor")
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


def head_width(dim: int, num_heads: int) -> int:
    """Channels of one attention head."""
    if dim % num_heads:
        raise HatlibError(f"{dim} channels can't be divided among num_heads={num_heads}; choose a divisor of {dim}.")
    return dim // num_heads


def inner_width(dim: int, ratio: float, name: str) -> int:
    """Channels of a bottleneck that is `ratio` times narrower than `dim`."""
    inner = int(dim // ratio)
    if inner < 1:
        raise HatlibError(f"{name}={ratio} leaves no channel of {dim}; it must be {dim} or less.")
    return inner
