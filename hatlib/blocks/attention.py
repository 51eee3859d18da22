"""Attention inside windows, attention between overlapping windows, and attention over channels."""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.blocks.softmax_attention import attend
from hatlib.blocks.strips import strips, tiles, use_strips
from hatlib.blocks.window import (
    check_window_multiple,
    overlap_relative_position_index,
    overlap_window_partition,
    overlap_window_size,
    relative_position_index,
    shift,
    shifted_window_regions,
    window_kinds,
    window_partition,
    window_reverse,
)
from hatlib.errors import HatlibError

__all__ = ["ChannelAttention", "OverlapCrossAttention", "WindowAttention"]

# What the published networks add to the logit of a pair of tokens that the cyclic shift has brought together.
SHIFT_PENALTY = -100.0

# Channels that a vector register holds: the fused kernels of a CPU are a fifth quicker on heads of 32 than of 30.
VECTOR = 8

Projection = Callable[[Tensor], Tensor]


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Looks up the relative-position bias: table (rows, heads), index (N, M) -> (heads, N, M).

    Looked up anew at every call: a cache would go stale when the table is loaded or trained.
    """
    table = table.t().contiguous()
    return table.gather(1, index.flatten().expand(len(table), -1)).unflatten(1, index.shape)


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
        bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
        if not self.shift_size:
            return self._windows(x, bias)
        x = shift(x, self.shift_size)
        # The shift brings tokens together that lie apart: what that adds to their logits, for each kind of window.
        apart = self.shift_regions[:, :, None] != self.shift_regions[:, None, :]
        x = self._windows_by_kind(x, bias, apart.to(bias.dtype) * SHIFT_PENALTY)
        return shift(x, -self.shift_size)

    def _windows_by_kind(self, x: Tensor, bias: Tensor, penalty: Tensor) -> Tensor:
        """Attention in the windows of a shifted map: bias (heads, N, N), and a penalty for each kind, (4, N, N).

        Overwrites x in eager inference.
        """
        w = self.window_size
        images, rows, columns = x.shape[0], x.shape[1] // w, x.shape[2] // w
        if torch.compiler.is_compiling():  # one bias a window: a traced graph can't depend on how many there are
            kinds = window_kinds(rows, columns, x.device).flatten()
            return self._windows(x, (bias + penalty[:, None])[kinds].repeat(images, 1, 1, 1))
        # The last row and the last column of windows divide the map into the four kinds.
        parts = [part for row in x.split([(rows - 1) * w, w], 1) for part in row.split([(columns - 1) * w, w], 2)]
        done = [
            self._windows(part, bias if kind == 0 else bias + penalty[kind], overwrite=True) if part.numel() else part
            for kind, part in enumerate(parts)
        ]
        if use_strips(self, x):
            return x
        return torch.cat([torch.cat(done[:2], 2), torch.cat(done[2:], 2)], 1)

    def _windows(self, x: Tensor, bias: Tensor, overwrite: bool = False) -> Tensor:
        """Attention in the windows of a map, all with the same bias (heads, N, N) or each with its own."""
        if not use_strips(self, x):
            return self._tile(x, bias, self.qkv, self.proj)
        qkv, proj = self.qkv, self.proj
        if is_plain(qkv) and is_plain(proj):
            qkv, proj = pad_heads(qkv.weight, qkv.bias, 3 * self.num_heads), pad_head_inputs(proj, self.num_heads)
        out = x if overwrite else torch.empty_like(x)
        images, height, width = x.shape[:3]
        for rows, columns in tiles(height, width, images * 3 * self.dim * x.itemsize, self.window_size):
            out[:, rows, columns] = self._tile(x[:, rows, columns], bias, qkv, proj)
        return out

    def _tile(self, x: Tensor, bias: Tensor, qkv: Projection, proj: Projection) -> Tensor:
        height, width = x.shape[1:3]
        x = qkv(window_partition(x, self.window_size))
        q, k, v = rearrange(x, "w n (qkv h d) -> qkv w h n d", qkv=3, h=self.num_heads)
        x = attend(q, k, v, bias, scale=self.scale, dropout=self.attn_drop if self.training else 0.0)
        x = self.proj_drop(proj(rearrange(x, "w h n d -> w n (h d)")))
        return window_reverse(x, self.window_size, height, width)


class OverlapCrossAttention(nn.Module):
    """Cross-attention from each window to the larger window around it, with relative position bias (OCA).

    Queries come from windows of side w, keys and values from windows of side (1 + overlap_ratio) * w with the same
    center; what lies beyond the border is zero and is attended to as well. HAT, section 3.2.3.
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
        bias = position_bias(self.relative_position_bias_table, self.relative_position_index)
        pad = (self.overlap_size - self.window_size) // 2
        if not (use_strips(self, x) and is_plain(self.qkv) and is_plain(self.proj)):
            q, kv = self.qkv(x).split([self.dim, 2 * self.dim], dim=-1)
            return self._tile(q, F.pad(kv, (0, 0, pad, pad, pad, pad)), bias, self.proj)
        weights = self.qkv.weight.split([self.dim, 2 * self.dim])
        biases = [None, None] if self.qkv.bias is None else self.qkv.bias.split([self.dim, 2 * self.dim])
        to_q, to_kv = (pad_heads(w, b, h * self.num_heads) for w, b, h in zip(weights, biases, (1, 2), strict=True))
        proj = pad_head_inputs(self.proj, self.num_heads)
        # Keys and values of the whole map, padded; queries and the overlapping windows a tile at a time.
        images, w = x.shape[0], self.window_size
        channels = 2 * self.num_heads * -(-self.dim // self.num_heads // VECTOR) * VECTOR
        pixel = images * channels * x.itemsize
        kv = x.new_zeros(images, height + 2 * pad, width + 2 * pad, channels)
        for rows in strips(height, width * pixel):
            kv[:, rows.start + pad : rows.stop + pad, pad : pad + width] = to_kv(x[:, rows])
        out = torch.empty_like(x)
        for rows, columns in tiles(height, width, pixel * self.overlap_size**2 // w**2, w):
            around = kv[:, rows.start : rows.stop + 2 * pad, columns.start : columns.stop + 2 * pad]
            out[:, rows, columns] = self._tile(to_q(x[:, rows, columns]), around, bias, proj)
        return out

    def _tile(self, q: Tensor, kv: Tensor, bias: Tensor, proj: Projection) -> Tensor:
        """From queries (B, h, W, C) and padded keys and values (B, h + o - w, W + o - w, 2 C) to (B, h, W, C)."""
        height, width = q.shape[1:3]
        q = rearrange(window_partition(q, self.window_size), "w n (h d) -> w h n d", h=self.num_heads)
        kv = overlap_window_partition(kv, self.window_size, self.overlap_size)
        k, v = rearrange(kv, "w m (kv h d) -> kv w h m d", kv=2, h=self.num_heads)
        x = attend(q, k, v, bias, scale=self.scale)
        return window_reverse(proj(rearrange(x, "w h n d -> w n (h d)")), self.window_size, height, width)


class ChannelAttention(nn.Module):
    """Weighs each channel by what the whole map holds (squeeze and excitation). (B, C, H, W) -> (B, C, H, W).

    RCAN, arXiv 1807.02758, section 3.3; HAT, section 3.2.2.

    Args:
        num_feat: channels C.
        squeeze_factor: C / squeeze_factor is the inner width.
        inplace: overwrite the input in eager inference.
    """

    def __init__(self, num_feat: int, squeeze_factor: float = 16, inplace: bool = False):
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

    def forward(self, x: Tensor) -> Tensor:
        weight = self.attention(x)
        return x.mul_(weight) if self.inplace and use_strips(self, x) else x * weight


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weight and bias: not replaced (by adapters, quantization), nor hooked."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def pad_heads(weight: Tensor, bias: Tensor | None, heads: int) -> Projection:
    """A projection to `heads` heads, each filled up with channels of zero to whole vectors."""
    return partial(F.linear, weight=_fill(weight, heads, 0), bias=None if bias is None else _fill(bias, heads, 0))


def pad_head_inputs(proj: nn.Linear, heads: int) -> Projection:
    """The projection after attention, for heads that were filled up."""
    return partial(F.linear, weight=_fill(proj.weight, heads, 1), bias=proj.bias)


def _fill(x: Tensor, heads: int, dim: int) -> Tensor:
    """Appends zeros to each head along a dimension, up to a multiple of `VECTOR`."""
    missing = -(x.shape[dim] // heads) % VECTOR
    if not missing:
        return x
    behind = [0, 0] * (x.ndim - 1 - dim)
    return F.pad(x.unflatten(dim, (heads, -1)), [*behind, 0, missing]).flatten(dim, dim + 1)


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
