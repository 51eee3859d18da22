"""Residual groups: blocks in order, a convolution, and a skip connection; and the layers that blocks are built from."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from timm.layers import Mlp, get_act_layer, get_norm_layer, trunc_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from hatlib.errors import HatlibError

__all__ = [
    "BlockSequence",
    "ResidualGroup",
    "channels_first",
    "find_layer",
    "residual_conv",
    "run_block",
    "shifted_blocks",
]

Layer = str | Callable[..., nn.Module]


def channels_first(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a module of (B, C, H, W), such as a convolution, to (B, H, W, C).

    A contiguous (B, H, W, C) tensor is a channels-last (B, C, H, W) tensor, so nothing is copied.
    """
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def find_layer(layer: Layer, kind: Literal["norm", "activation"]) -> Callable[..., nn.Module]:
    """Returns the layer class for a name of timm ('layernorm', 'rmsnorm', 'gelu', ...); classes pass through.

    timm's 'layernorm' has eps 1e-6. The published networks use `torch.nn.LayerNorm`, whose eps is 1e-5.

    Raises:
        HatlibError: if timm does not know the name.
    """
    if not isinstance(layer, str):
        return layer
    try:
        found = get_norm_layer(layer) if kind == "norm" else get_act_layer(layer)
    except (AssertionError, KeyError, ValueError):
        found = None
    if found is None:
        raise HatlibError(f"timm has no {kind} layer {layer!r}; pass a name such as 'layernorm' or 'gelu', or a class.")
    return found


def init_linear(module: nn.Module) -> None:
    """Initializes all linear layers of a module as the published networks do: truncated normal of 0.02, zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def create_mlp(
    mlp_layer: Callable[..., nn.Module], dim: int, ratio: float, act_layer: Layer, **options: Any
) -> nn.Module:
    """Builds the MLP of a block; timm's `Mlp` is initialized as published, other layers keep their initialization."""
    mlp = mlp_layer(dim, int(dim * ratio), act_layer=find_layer(act_layer, "activation"), **options)
    if type(mlp) is Mlp:
        init_linear(mlp)
    return mlp


def run_block(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """block(x); with `checkpointing`, activations inside the block are recomputed in the backward pass."""
    if not (checkpointing and torch.is_grad_enabled()):
        return block(x)
    # The reentrant kind takes less memory on a CPU: the other kind frees temporaries one by one, and the kept ones
    # fragment the heap. It needs an input with a gradient, and torch.compile supports the other kind only.
    return checkpoint(block, x, use_reentrant=x.requires_grad and not torch.compiler.is_compiling())


class BlockSequence(nn.Module):
    """Blocks of one layout in order, checkpointed one by one if asked.

    Args:
        blocks: the blocks.
        overlap_attn: a last block (the OCAB of HAT), or None.
    """

    def __init__(self, blocks: Sequence[nn.Module], overlap_attn: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.overlap_attn = overlap_attn
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = run_block(block, x, self.grad_checkpointing)
        return x if self.overlap_attn is None else run_block(self.overlap_attn, x, self.grad_checkpointing)


class ResidualGroup(nn.Module):
    """Residual group x + conv(blocks(x)): the RHAG of HAT, the RSTB of SwinIR and the residual group of RCAN.

    Parameter names are the published ones: `residual_group.blocks.B`, `residual_group.overlap_attn`, `conv`.

    Args:
        blocks: the blocks, which all take and return `layout`.
        conv: (B, C, H, W) -> (B, C, H, W), for example from `residual_conv`.
        overlap_attn: a last block before the convolution (the OCAB of HAT), or None.
        layout: 'NHWC' for blocks of (B, H, W, C), 'NCHW' for blocks of (B, C, H, W).

    Example:
        >>> import torch
        >>> from hatlib import blocks
        >>> group = blocks.ResidualGroup(
        ...     [blocks.HAB(16, 2, window_size=8, squeeze_factor=4)], blocks.residual_conv(16, "1conv")
        ... )
        >>> group(torch.rand(1, 8, 16, 16)).shape
        torch.Size([1, 8, 16, 16])
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        conv: nn.Module,
        overlap_attn: nn.Module | None = None,
        *,
        layout: Literal["NHWC", "NCHW"] = "NHWC",
    ):
        super().__init__()
        self.residual_group = BlockSequence(blocks, overlap_attn)
        self.conv = conv
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual_group(x)
        return x + (channels_first(self.conv, y) if self.layout == "NHWC" else self.conv(y))


def residual_conv(dim: int, kind: str) -> nn.Module:
    """The convolution before a skip connection: one 3x3, a bottleneck of three (SwinIR, section 4.2), or none.

    (B, dim, H, W) -> (B, dim, H, W).

    Raises:
        HatlibError: if `kind` is not '1conv', '3conv' or 'identity'.
    """
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, 1, 1)
    if kind == "3conv":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 4, 3, 1, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim, 3, 1, 1),
        )
    if kind == "identity":
        return nn.Identity()
    raise HatlibError(f"resi_connection={kind!r} is not known; it is '1conv', '3conv' or 'identity'.")


def shifted_blocks(
    block_layer: Callable[..., nn.Module],
    dim: int,
    depth: int,
    num_heads: int,
    window_size: int,
    drop_path: float | Sequence[float],
) -> list[nn.Module]:
    """Blocks of which every second one shifts its windows by half."""
    rates = [drop_path] * depth if isinstance(drop_path, (int, float)) else drop_path
    return [
        block_layer(
            dim=dim,
            num_heads=num_heads,
            window_size=window_size,
            shift_size=0 if i % 2 == 0 else window_size // 2,
            drop_path=rates[i],
        )
        for i in range(depth)
    ]
