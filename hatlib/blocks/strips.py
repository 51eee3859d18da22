"""Execution strategy on the CPU: the same results as the formulas in the blocks, in less time and memory.

Large temporaries cost twice on a CPU: they set the peak of the memory, and the system allocator returns them to the
system after each operation and gets them back zeroed, page by page. In eager inference on a CPU, attention, MLPs and
heads therefore process a map in strips whose temporaries fit into the cache of a core. Attention heads are also padded
to whole vector registers.

A block states its formula in `forward` and names its strategy with the decorator `cpu_strips`. Training, GPUs,
`torch.compile` and export run the formula. Autograd keeps the whole map anyway, a traced graph cannot loop over a size,
and a GPU needs few large kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, GluMlp, LayerNorm, Mlp, RmsNorm
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.blocks.group import channels_first
from hatlib.blocks.window import (
    check_window_multiple,
    cyclic_shift,
    shifted_window_mask,
    split_window_kinds,
)

__all__ = ["cpu_strips", "head", "use_strips"]

# Bound of the largest temporary of a strip: about the cache of a core.
STRIP_BYTES = 3 * 2**19
# The same for heads, whose convolutions compute the border of a strip again: larger, so that borders are few.
HALO_STRIP_BYTES = 64 * 2**20
# Channels that a vector register holds: fused attention is a fifth faster on heads of 32 channels than of 30.
VECTOR = 8

# Layers that treat each pixel of (B, H, W, C) alone.
_MLPS = {Mlp, GluMlp}
_NORMS = {nn.LayerNorm, nn.RMSNorm, LayerNorm, RmsNorm}

Projection = Callable[[Tensor], Tensor]
Forward = Callable[[Any, Tensor], Tensor]


def use_strips(module: nn.Module, x: Tensor) -> bool:
    """Whether a module may process x in strips: on the CPU, in eager mode, without gradients and without dropout.

    With dropout, random numbers drawn strip by strip would differ from those drawn for the whole map, and the two
    passes of gradient checkpointing would compute different networks.
    """
    eager = not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
    return eager and x.device.type == "cpu"


def cpu_strips(strategy: Forward) -> Callable[[Forward], Forward]:
    """Decorator of `forward(self, x)`: runs `strategy(self, x)` instead where `use_strips` allows it.

    A strategy returns NotImplemented for what only the formula can do.
    """

    def decorate(forward: Forward) -> Forward:
        @functools.wraps(forward)
        def dispatch(self: nn.Module, x: Tensor) -> Tensor:
            y = strategy(self, x) if use_strips(self, x) else NotImplemented
            return forward(self, x) if y is NotImplemented else y

        return dispatch

    return decorate


# Dividing a map.


def strips(length: int, bytes_each: int, multiple: int = 1, budget: int | None = None) -> Iterator[slice]:
    """Divides `length` rows of `bytes_each` bytes into slices of about equal height within the budget.

    Each slice but the last has a multiple of `multiple` rows, at least one multiple. The default budget is
    `STRIP_BYTES`.
    """
    units = -(-length // multiple)
    count = -(-units // max(1, (budget or STRIP_BYTES) // (bytes_each * multiple)))
    step = -(-units // max(1, count)) * multiple
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def tiles(height: int, width: int, bytes_each: int, multiple: int) -> Iterator[tuple[slice, slice]]:
    """Divides a map with `bytes_each` bytes per pixel into (rows, columns) within the budget, each a multiple."""
    for rows in strips(height, bytes_each * width, multiple):
        for columns in strips(width, bytes_each * (rows.stop - rows.start), multiple):
            yield rows, columns


# Strategies of blocks.


def hybrid_attention_block(block: Any, x: Tensor) -> Tensor:
    """`HAB.forward`: sums in place, MLP in strips."""
    y = block.norm1(x)
    x = torch.add(x, channels_first(block.conv_block, y), alpha=block.conv_scale)
    return _add_mlp(block, x.add_(block.drop_path(block.attn(y))))


def swin_layer(block: Any, x: Tensor) -> Tensor:
    """`STL.forward`: MLP in strips."""
    return _add_mlp(block, x + block.drop_path(block.attn(block.norm1(x))))


def overlapping_cross_attention_block(block: Any, x: Tensor) -> Tensor:
    """`OCAB.forward`: MLP in strips."""
    return _add_mlp(block, x + block.attention(block.norm1(x)))


def channel_attention(module: Any, x: Tensor) -> Tensor:
    """`ChannelAttention.forward`, which overwrites x if the module allows it."""
    weight = module.attention(x)
    return x.mul_(weight) if module.inplace else x * weight


def window_attention(module: Any, x: Tensor) -> Tensor:
    """`WindowAttention.forward`, some windows at a time."""
    check_window_multiple(x, module.window_size)
    bias, (qkv, proj) = module.position_bias(), _padded_projections(module)
    if not module.shift_size:
        return _attend_in_tiles(module, x, torch.empty_like(x), bias, qkv, proj)
    x = cyclic_shift(x, module.shift_size)
    mask = shifted_window_mask(module.shift_regions, bias.dtype)
    for kind, part in enumerate(split_window_kinds(x, module.window_size)):
        if part.numel():
            _attend_in_tiles(module, part, part, bias if kind == 0 else bias + mask[kind], qkv, proj)
    return cyclic_shift(x, -module.shift_size)


def overlap_cross_attention(module: Any, x: Tensor) -> Tensor:
    """`OverlapCrossAttention.attention`: keys and values of the whole map, queries and windows a tile at a time."""
    check_window_multiple(x, module.window_size)
    if not (is_plain(module.qkv) and is_plain(module.proj)):
        return NotImplemented
    images, height, width = x.shape[:3]
    heads, w, pad = module.num_heads, module.window_size, module.pad
    bias = module.position_bias()
    weights = module.qkv.weight.split([module.dim, 2 * module.dim])
    biases = [None, None] if module.qkv.bias is None else module.qkv.bias.split([module.dim, 2 * module.dim])
    to_q, to_kv = (pad_heads(w, b, n * heads) for w, b, n in zip(weights, biases, (1, 2), strict=True))
    proj = pad_head_inputs(module.proj, heads)
    channels = 2 * heads * -(-module.dim // heads // VECTOR) * VECTOR
    pixel = images * channels * x.itemsize
    kv = x.new_zeros(images, height + 2 * pad, width + 2 * pad, channels)
    for rows in strips(height, width * pixel):
        kv[:, rows.start + pad : rows.stop + pad, pad : pad + width] = to_kv(x[:, rows])
    out = torch.empty_like(x)
    for rows, columns in tiles(height, width, pixel * module.overlap_size**2 // w**2, w):
        around = kv[:, rows.start : rows.stop + 2 * pad, columns.start : columns.stop + 2 * pad]
        out[:, rows, columns] = module.attend(to_q(x[:, rows, columns]), around, bias, proj)
    return out


def head(module: Any, x: Tensor) -> Tensor:
    """The result of a `Head` for (B, C, H, W), in strips of rows with a border of `halo` rows."""
    if module.halo is None:
        return module(x)
    height, scale = x.shape[2], module.scale
    parts = list(strips(height, x.shape[0] * x.shape[3] * module.width * x.itemsize, budget=HALO_STRIP_BYTES))
    if len(parts) == 1:
        return module(x)
    out = None
    for rows in parts:
        top, bottom = max(0, rows.start - module.halo), min(height, rows.stop + module.halo)
        part = module(x[:, :, top:bottom])[:, :, (rows.start - top) * scale : (rows.stop - top) * scale]
        if out is None:
            out = part.new_empty(*part.shape[:2], height * scale, part.shape[3])
        out[:, :, rows.start * scale : rows.stop * scale] = part
    return out


def _attend_in_tiles(module: Any, x: Tensor, out: Tensor, bias: Tensor, qkv: Projection, proj: Projection) -> Tensor:
    """Attention in the windows of x, written to `out`, which may be x itself."""
    images, height, width, channels = x.shape
    for rows, columns in tiles(height, width, images * 3 * channels * x.itemsize, module.window_size):
        out[:, rows, columns] = module.attend(x[:, rows, columns], bias, qkv, proj)
    return out


def _add_mlp(block: Any, x: Tensor) -> Tensor:
    """x + drop_path(mlp(norm2(x))), in strips and in place if the layers treat each pixel alone; overwrites x."""
    drop_path = getattr(block, "drop_path", nn.Identity())
    if not (type(block.mlp) in _MLPS and type(block.norm2) in _NORMS and type(drop_path) in (nn.Identity, DropPath)):
        return x + drop_path(block.mlp(block.norm2(x)))
    for rows in strips(x.shape[1], x.shape[0] * x.shape[2] * block.mlp.fc1.out_features * x.itemsize):
        x[:, rows] += drop_path(block.mlp(block.norm2(x[:, rows])))
    return x


# Heads padded to whole vector registers.


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is exactly a linear layer: not replaced (by adapters, quantization) and without hooks."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def pad_heads(weight: Tensor, bias: Tensor | None, heads: int) -> Projection:
    """A projection to `heads` attention heads, each padded with zero channels to a multiple of `VECTOR`."""
    return partial(F.linear, weight=_pad(weight, heads, 0), bias=None if bias is None else _pad(bias, heads, 0))


def pad_head_inputs(proj: nn.Linear, heads: int) -> Projection:
    """The projection after attention for padded heads."""
    return partial(F.linear, weight=_pad(proj.weight, heads, 1), bias=proj.bias)


def _padded_projections(module: Any) -> tuple[Projection, Projection]:
    qkv, proj = module.qkv, module.proj
    if not (is_plain(qkv) and is_plain(proj)):
        return qkv, proj
    return pad_heads(qkv.weight, qkv.bias, 3 * module.num_heads), pad_head_inputs(proj, module.num_heads)


def _pad(x: Tensor, heads: int, dim: int) -> Tensor:
    """Appends zeros to each head along a dimension, up to a multiple of `VECTOR`."""
    missing = -(x.shape[dim] // heads) % VECTOR
    if not missing:
        return x
    behind = [0, 0] * (x.ndim - 1 - dim)
    return F.pad(x.unflatten(dim, (heads, -1)), [*behind, 0, missing]).flatten(dim, dim + 1)
