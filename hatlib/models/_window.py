"""What HAT and SwinIR share: groups of window attention on (B, H, W, C) between a shallow convolution and a head."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from hatlib.blocks import residual_conv
from hatlib.errors import HatlibError
from hatlib.models.base import RestorationModel

__all__ = ["WindowModel"]


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, H, W, C), normalized. One patch is one pixel."""

    def __init__(self, dim: int, norm_layer: Callable[..., nn.Module] | None):
        super().__init__()
        self.norm = norm_layer(dim) if norm_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1))


class WindowModel(RestorationModel):
    """Shallow convolution, groups of window attention, a convolution with a skip around the groups, and a head.

    Args:
        group: builds one group from its depth, its heads and the stochastic depth of each of its blocks.
        **others: as in `hatlib.models.HAT`.

    Raises:
        HatlibError: for arguments that don't go together.
    """

    unrecoverable_args = ("img_range", "mean", "qk_scale")
    training_only_args = ("drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint", "img_size")

    def __init__(
        self,
        *,
        upscale: int,
        in_chans: int,
        out_chans: int | None,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_rate: float,
        drop_path_rate: float,
        norm_layer: Callable[..., nn.Module],
        patch_norm: bool,
        img_range: float,
        mean: Sequence[float] | None,
        upsampler: str,
        resi_connection: str,
        num_feat: int,
        use_checkpoint: bool,
        ape: bool,
        patch_size: int,
        group: Callable[[int, int, list[float]], nn.Module],
    ):
        super().__init__(
            upscale=upscale,
            in_chans=in_chans,
            out_chans=out_chans,
            img_range=img_range,
            mean=mean,
            multiple=window_size,
        )
        name = type(self).__name__
        if ape:
            raise HatlibError(f"ape=True ties {name} to one input size, and no published one has it; leave it out.")
        if patch_size != 1:
            raise HatlibError(f"{name} works on single pixels: patch_size must be 1, not {patch_size}.")
        if len(depths) != len(num_heads):
            raise HatlibError(f"depths has {len(depths)} groups and num_heads {len(num_heads)}; they must agree.")
        self.window_size = window_size
        self.num_features = self.embed_dim = embed_dim
        self.head_hidden_size = self.num_feat = num_feat
        self.upsampler = upsampler

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, 1, 1)
        self.patch_embed = PatchEmbed(embed_dim, norm_layer if patch_norm else None)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList(
            group(depth, heads, [next(rates) for _ in range(depth)])
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = norm_layer(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self.reset_upsampler(upscale)
        self.init_weights()
        self.set_grad_checkpointing(use_checkpoint)

    def init_weights(self) -> None:
        """Linear layers from a truncated normal of 0.02; convolutions and norms as PyTorch has them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def to_trunk(self, x: Tensor) -> Tensor:
        return self.pos_drop(self.patch_embed(x))

    def from_trunk(self, x: Tensor) -> Tensor:
        return self.norm(x).permute(0, 3, 1, 2)

    def group_output(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops what published files hold beside weights: index and mask buffers, which are computed here."""
        derived = ("relative_position_index_SA", "relative_position_index_OCA", "relative_position_index", "attn_mask")
        return {name: value for name, value in state_dict.items() if name.rpartition(".")[2] not in derived}
