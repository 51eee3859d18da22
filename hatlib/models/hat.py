"""HAT, the Hybrid Attention Transformer (arXiv 2205.04437, CVPR 2023; journal version arXiv 2309.05239).

A shallow convolution, residual hybrid attention groups, a convolution with a skip around the groups, and a head.
Parameter names are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers import Mlp
from torch import Tensor, nn

from hatlib.blocks import HAB, OCAB, RHAG, overlap_relative_position_index, overlap_window_size, relative_position_index
from hatlib.blocks.group import Layer
from hatlib.detection import register_detector
from hatlib.models._hat_weights import WEIGHTS
from hatlib.models._window import WindowModel
from hatlib.models.build import build_model
from hatlib.models.detect import (
    count_modules,
    detect_head,
    detect_residual,
    expansion_ratio,
    reduction_ratio,
    reject_ape,
    table_span,
)
from hatlib.networks import register_model

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
        norm_layer: called with C; a class or a name of timm.
        act_layer: activation of the MLPs; a class or a name of timm.
        attn_layer: attention of the HABs: a registered name, `{name: options}`, or a class. `qkv_bias`, `qk_scale` and
            `attn_drop_rate` belong to the built-in 'window'.
        conv_layer: called with C for the channel-attention branch of each HAB; CAB if None.
        mlp_layer: MLP of the blocks, called as timm's `Mlp`.
        block_layer: called with `dim=, num_heads=, window_size=, shift_size=, drop_path=` for each block, in place of
            HAB; the arguments of HAB above then have no effect.
        overlap_layer: called with `dim=, num_heads=, window_size=` for the last block of a group, in place of OCAB.
        patch_norm: whether the shallow features are normalized before the first group.
        img_range: factor by which the image is multiplied inside.
        mean: subtracted before and added after; DIV2K's RGB mean for three channels, else 0, if None.
        upsampler: the head: a registered name, `{name: options}`, a subclass of `hatlib.blocks.Head`, or an instance.
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

    tiny_args = dict(
        embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=8, squeeze_factor=4, compress_ratio=3, num_feat=8
    )

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        *,
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
        norm_layer: Layer = nn.LayerNorm,
        act_layer: Layer = nn.GELU,
        attn_layer: Any = "window",
        conv_layer: Callable[..., nn.Module] | None = None,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        block_layer: Callable[..., nn.Module] | None = None,
        overlap_layer: Callable[..., nn.Module] | None = None,
        patch_norm: bool = True,
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        upsampler: Any = "pixelshuffle",
        resi_connection: str = "1conv",
        num_feat: int = 64,
        use_checkpoint: bool = False,
        ape: bool = False,
        img_size: int | Sequence[int] | None = None,
        patch_size: int = 1,
    ):
        shared = dict(
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            mlp_ratio=mlp_ratio,
            mlp_layer=mlp_layer,
            act_layer=act_layer,
            norm_layer=norm_layer,
        )
        block = partial(
            HAB,
            compress_ratio=compress_ratio,
            squeeze_factor=squeeze_factor,
            conv_scale=conv_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            attn_layer=attn_layer,
            conv_layer=conv_layer,
            **shared,
        )
        overlap = partial(OCAB, overlap_ratio=overlap_ratio, **shared)
        super().__init__(
            upscale,
            in_chans,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            group=partial(
                RHAG,
                embed_dim,
                window_size=window_size,
                resi_connection=resi_connection,
                block_layer=block_layer or block,
                overlap_layer=overlap_layer or overlap,
            ),
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            norm_layer=norm_layer,
            patch_norm=patch_norm,
            ape=ape,
            patch_size=patch_size,
            out_chans=out_chans,
            img_range=img_range,
            mean=mean,
            upsampler=upsampler,
            num_feat=num_feat,
            resi_connection=resi_connection,
            use_checkpoint=use_checkpoint,
        )
        self.overlap_ratio = overlap_ratio
        self.trunk_maps = 7.6 + 2 / compress_ratio

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
    """Returns the arguments of `HAT` that weights in either layout reveal, or None for weights of another network."""
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
SIZES: dict[str, dict[str, Any]] = {
    "hat_t": dict(embed_dim=48, depths=(3, 3), num_heads=(2, 2), compress_ratio=3, squeeze_factor=12, num_feat=32),
    "hat_s": dict(embed_dim=144, depths=(6,) * 6, num_heads=(6,) * 6, compress_ratio=24, squeeze_factor=24),
    "hat": dict(embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6, compress_ratio=3, squeeze_factor=30),
    "hat_l": dict(embed_dim=180, depths=(6,) * 12, num_heads=(6,) * 12, compress_ratio=3, squeeze_factor=30),
}


@register_model(HAT, SIZES["hat_t"], weights=WEIGHTS)
def hat_t_x2(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-T, a tiny size of ours at x2; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_t_x2", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_t"], weights=WEIGHTS)
def hat_t_x4(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-T, a tiny size of ours at x4; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_t_x4", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_s"], weights=WEIGHTS)
def hat_s_x1(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-S at x1; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_s_x1", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_s"], weights=WEIGHTS)
def hat_s_x2(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-S at x2; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_s_x2", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_s"], weights=WEIGHTS)
def hat_s_x3(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-S at x3; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_s_x3", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_s"], weights=WEIGHTS)
def hat_s_x4(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-S at x4; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_s_x4", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_s"], weights=WEIGHTS)
def hat_s_x8(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-S at x8; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_s_x8", pretrained, **kwargs)


@register_model(HAT, SIZES["hat"], weights=WEIGHTS)
def hat_x1(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT at x1; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_x1", pretrained, **kwargs)


@register_model(HAT, SIZES["hat"], weights=WEIGHTS)
def hat_x2(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT at x2; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_x2", pretrained, **kwargs)


@register_model(HAT, SIZES["hat"], weights=WEIGHTS)
def hat_x3(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT at x3; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_x3", pretrained, **kwargs)


@register_model(HAT, SIZES["hat"], weights=WEIGHTS)
def hat_x4(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT at x4; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_x4", pretrained, **kwargs)


@register_model(HAT, SIZES["hat"], weights=WEIGHTS)
def hat_x8(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT at x8; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_x8", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_l"], weights=WEIGHTS)
def hat_l_x1(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-L at x1; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_l_x1", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_l"], weights=WEIGHTS)
def hat_l_x2(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-L at x2; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_l_x2", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_l"], weights=WEIGHTS)
def hat_l_x3(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-L at x3; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_l_x3", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_l"], weights=WEIGHTS)
def hat_l_x4(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-L at x4; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_l_x4", pretrained, **kwargs)


@register_model(HAT, SIZES["hat_l"], weights=WEIGHTS)
def hat_l_x8(pretrained: bool = False, **kwargs: Any) -> HAT:
    """HAT-L at x8; `**kwargs` are constructor arguments of `HAT`."""
    return build_model("hat_l_x8", pretrained, **kwargs)
