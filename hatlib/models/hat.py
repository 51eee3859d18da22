"""HAT, the Hybrid Attention Transformer (arXiv 2205.04437, CVPR 2023; journal version arXiv 2309.05239).

A shallow convolution, residual hybrid attention groups, a convolution with a skip around the groups, and a head.
Parameter names are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hatlib.blocks import RHAG, overlap_relative_position_index, overlap_window_size, relative_position_index
from hatlib.models._hat_weights import pretrained as published
from hatlib.models._window import WindowModel
from hatlib.models.build import register_arch
from hatlib.models.detect import (
    count_modules,
    detect_head,
    detect_residual,
    expansion_ratio,
    reduction_ratio,
    reject_ape,
    table_span,
)
from hatlib.registry import register_detector

__all__ = ["HAT"]


class HAT(WindowModel):
    """Hybrid Attention Transformer: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Float RGB in [0, 1], any H and W from 1 up; the output is not clamped. The arguments are those of the published
    configurations, so a BasicSR `network_g` section (without its `type`) can be passed as it is.

    Args:
        upscale: 1, 2, 3, 4, 8, ... (what the upsampler knows).
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        embed_dim: channels C of the trunk.
        depths: HABs of each group.
        num_heads: attention heads of each group.
        window_size: side of the window; images are padded to a multiple of it.
        compress_ratio: the paper's beta, bottleneck of the CAB.
        squeeze_factor: reduction of the channel attention.
        conv_scale: the paper's alpha, weight of the CAB.
        overlap_ratio: the paper's gamma, how much wider the key/value windows of the OCAB are.
        mlp_ratio: width of the MLPs over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 if None.
        drop_rate: dropout of features, in the MLPs and after attention.
        attn_drop_rate: dropout of attention weights in the HABs.
        drop_path_rate: stochastic depth of the last HAB; rises linearly from 0 over all HABs.
        norm_layer: called with C.
        patch_norm: whether the shallow features are normalized before the first group.
        img_range: factor by which the image is multiplied inside.
        mean: subtracted before and added after; DIV2K's RGB mean for three channels, else 0, if None.
        upsampler: kind of head, see `hatlib.blocks.create_head`.
        resi_connection: convolution before each skip, '1conv', '3conv' or 'identity'.
        num_feat: channels of the head.
        use_checkpoint: the same as `set_grad_checkpointing()`.
        ape: absolute position embedding; refused, since it ties the network to one input size.
        img_size: accepted and without effect: no part of the network depends on a size.
        patch_size: 1 is the only one.

    Raises:
        HatlibError: for arguments that don't go together.
    """

    unrecoverable_args = ("conv_scale", *WindowModel.unrecoverable_args)
    citation = """@inproceedings{chen2023hat,
  title     = {Activating More Pixels in Image Super-Resolution Transformer},
  author    = {Chen, Xiangyu and Wang, Xintao and Zhou, Jiantao and Qiao, Yu and Dong, Chao},
  booktitle = {CVPR},
  year      = {2023}
}"""

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        out_chans: int | None = None,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 16,
        compress_ratio: float = 3,
        squeeze_factor: float = 30,
        conv_scale: float = 0.01,
        overlap_ratio: float = 0.5,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        patch_norm: bool = True,
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        upsampler: str = "pixelshuffle",
        resi_connection: str = "1conv",
        num_feat: int = 64,
        use_checkpoint: bool = False,
        ape: bool = False,
        img_size: int | Sequence[int] | None = None,
        patch_size: int = 1,
    ):
        super().__init__(
            upscale=upscale,
            in_chans=in_chans,
            out_chans=out_chans,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            norm_layer=norm_layer,
            patch_norm=patch_norm,
            img_range=img_range,
            mean=mean,
            upsampler=upsampler,
            resi_connection=resi_connection,
            num_feat=num_feat,
            use_checkpoint=use_checkpoint,
            ape=ape,
            patch_size=patch_size,
            group=lambda depth, heads, rates: RHAG(
                embed_dim,
                depth,
                heads,
                window_size,
                compress_ratio,
                squeeze_factor,
                conv_scale,
                overlap_ratio,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                drop_rate,
                attn_drop_rate,
                rates,
                norm_layer,
                resi_connection,
            ),
        )
        self.overlap_ratio = overlap_ratio
        self.trunk_maps = 9 + 2 / compress_ratio

    def published_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights with the index buffers that the official code stores, and by which others detect HAT."""
        overlap = overlap_window_size(self.window_size, self.overlap_ratio)
        return {
            "relative_position_index_SA": relative_position_index(self.window_size),
            "relative_position_index_OCA": overlap_relative_position_index(self.window_size, overlap),
            **(self.state_dict() if state_dict is None else state_dict),
        }


@register_detector(HAT)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of `HAT` that weights tell, in the published layout or ours; None for other networks' weights."""
    group, block = "layers.0.residual_group", "layers.0.residual_group.blocks.0"
    needed = ("conv_first.weight", f"{block}.conv_block.cab.0.weight", f"{group}.overlap_attn.qkv.weight")
    if not all(name in state_dict for name in needed):
        return None
    reject_ape(state_dict, "HAT")
    dim, in_chans = state_dict["conv_first.weight"].shape[:2]
    groups = range(count_modules(state_dict, "layers"))
    tables = [state_dict[f"layers.{i}.residual_group.overlap_attn.relative_position_bias_table"] for i in groups]
    # Offsets in a window range over 2 w - 1 values, those from a window to an overlapping one over w + o - 1.
    window = (table_span(state_dict[f"{block}.attn.relative_position_bias_table"]) + 1) // 2
    overlap = table_span(tables[0]) - window + 1
    inner, squeezed = (state_dict[f"{block}.conv_block.cab.{i}.weight"] for i in ("0", "3.attention.1"))
    return dict(
        in_chans=in_chans,
        embed_dim=dim,
        depths=tuple(count_modules(state_dict, f"layers.{i}.residual_group.blocks") for i in groups),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        compress_ratio=reduction_ratio(dim, inner.shape[0]),
        squeeze_factor=reduction_ratio(dim, squeezed.shape[0]),
        overlap_ratio=expansion_ratio(window, overlap - window),
        mlp_ratio=expansion_ratio(dim, state_dict[f"{block}.mlp.fc1.weight"].shape[0]),
        qkv_bias=f"{block}.attn.qkv.bias" in state_dict,
        patch_norm="patch_embed.norm.weight" in state_dict,
        resi_connection=detect_residual(state_dict),
        **detect_head(state_dict, in_chans),
    )


# The published sizes (journal version, table 2), and a tiny one of ours that a laptop can train and run.
_SIZES: dict[str, dict[str, Any]] = {
    "hat_t": dict(embed_dim=48, depths=(3, 3), num_heads=(2, 2), compress_ratio=3, squeeze_factor=12, num_feat=32),
    "hat_s": dict(embed_dim=144, depths=(6,) * 6, num_heads=(6,) * 6, compress_ratio=24, squeeze_factor=24),
    "hat": dict(embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6, compress_ratio=3, squeeze_factor=30),
    "hat_l": dict(embed_dim=180, depths=(6,) * 12, num_heads=(6,) * 12, compress_ratio=3, squeeze_factor=30),
}
_SCALES = {"hat_t": (2, 4), "hat_s": (1, 2, 3, 4, 8), "hat": (1, 2, 3, 4, 8), "hat_l": (1, 2, 3, 4, 8)}

pretrained = published  # which `register_model` reads

# What shrinks any of the models above for tests that go through the whole registry.
tiny_overrides: dict[str, Any] = dict(
    embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=8, squeeze_factor=4, compress_ratio=3, num_feat=8
)

for _size, _scales in _SCALES.items():
    for _scale in _scales:
        globals()[f"{_size}_x{_scale}"] = register_arch(HAT, _size, _scale, _SIZES[_size], _size.upper())
