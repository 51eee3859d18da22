"""What HAT and SwinIR share: groups of window attention on (B, H, W, C), a norm before and after the groups."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatlib.blocks.group import Layer, find_layer
from hatlib.errors import HatlibError
from hatlib.models.base import RestorationModel

__all__ = ["WindowModel"]


class PatchEmbed(nn.Module):
    """The norm of shallow features under its published name; one patch is one pixel. (B, H, W, C) -> same."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class WindowModel(RestorationModel):
    """Groups of window attention between a shallow convolution and a head.

    Args:
        upscale: output size over input size.
        in_chans: channels of the input.
        embed_dim: channels C of the trunk.
        depths: blocks of each group.
        num_heads: attention heads of each group.
        window_size: side of the window.
        group: builds a group: called with `depth=, num_heads=, drop_path=`, the last being a rate for each block.
        drop_rate: dropout of features.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 over all blocks.
        norm_layer: called with C.
        patch_norm: whether the shallow features are normalized before the first group.
        ape: absolute position embedding; refused.
        patch_size: 1 is the only one.
        **common: as in `RestorationModel`.

    Raises:
        HatlibError: for arguments that do not go together.
    """

    layout = "NHWC"
    unrecoverable_args = ("img_range", "mean", "qk_scale")
    training_only_args = ("drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint", "img_size")

    def __init__(
        self,
        upscale: int,
        in_chans: int,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        group: Callable[..., nn.Module],
        drop_rate: float,
        drop_path_rate: float,
        norm_layer: Layer,
        patch_norm: bool,
        ape: bool,
        patch_size: int,
        **common: Any,
    ):
        name = type(self).__name__
        if ape:
            raise HatlibError(f"ape=True ties {name} to one input size, and no published {name} has it; leave it out.")
        if patch_size != 1:
            raise HatlibError(f"{name} works on single pixels: patch_size must be 1, not {patch_size}.")
        if len(depths) != len(num_heads):
            raise HatlibError(f"depths has {len(depths)} groups and num_heads {len(num_heads)}; they must agree.")
        super().__init__(upscale, embed_dim, in_chans=in_chans, multiple=window_size, **common)
        self.window_size = window_size
        self.embed_dim = embed_dim
        norm = find_layer(norm_layer, "norm")
        self.patch_embed = PatchEmbed(norm(embed_dim) if patch_norm else nn.Identity())
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList(
            group(depth=depth, num_heads=heads, drop_path=[next(rates) for _ in range(depth)])
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = norm(embed_dim)

    def begin_trunk(self, x: Tensor) -> Tensor:
        return self.pos_drop(self.patch_embed(x))

    def end_trunk(self, x: Tensor) -> Tensor:
        return self.norm(x)

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the index and mask buffers of published files, which are computed here."""
        derived = ("relative_position_index_SA", "relative_position_index_OCA", "relative_position_index", "attn_mask")
        return {name: value for name, value in state_dict.items() if name.rpartition(".")[2] not in derived}
