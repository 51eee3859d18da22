"""Runs of blocks, checkpointed one by one if asked, and the convolution that ends them."""

from collections.abc import Sequence

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from hatlib.errors import HatlibError

__all__ = ["AttentionGroup", "residual_conv", "run_block"]


def run_block(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """block(x); with `checkpointing`, what it computes inside is computed again in the backward pass, not kept."""
    if not (checkpointing and torch.is_grad_enabled()):
        return block(x)
    # The reentrant kind takes less memory on a CPU: the other kind frees each temporary on its own, and what is kept
    # lies scattered among them. It needs an input with a gradient, and torch.compile knows only the other one.
    return checkpoint(block, x, use_reentrant=x.requires_grad and not torch.compiler.is_compiling())


class AttentionGroup(nn.Module):
    """A run of blocks of one layout, the last of them optionally an overlapping one; checkpointed one by one if asked.

    Args:
        blocks: the blocks, in order.
        overlap_attn: the block after them (HAT's OCAB), or None.
    """

    def __init__(self, blocks: Sequence[nn.Module], overlap_attn: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.overlap_attn = overlap_attn
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.blocks] if self.overlap_attn is None else [*self.blocks, self.overlap_attn]:
            x = run_block(block, x, self.grad_checkpointing)
        return x


def residual_conv(dim: int, kind: str) -> nn.Module:
    """The convolution before a skip: one 3x3, a bottleneck of three (SwinIR, section 4.2), or none.

    (B, dim, H, W) -> (B, dim, H, W).
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
