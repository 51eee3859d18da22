"""SwinIR, image restoration by Swin transformer layers (arXiv 2108.10257, ICCV workshops 2021).

A shallow convolution, residual Swin transformer blocks, a convolution with a skip around them, and a head for each
task. Parameter names are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from hatlib.blocks import RSTB, STL, WindowAttention, relative_position_index
from hatlib.blocks.group import Layer
from hatlib.blocks.window import shifted_window_mask, shifted_window_regions, window_kinds
from hatlib.detection import register_detector
from hatlib.models._weights import on_benchmarks
from hatlib.models._window import WindowModel
from hatlib.models.build import build_model
from hatlib.models.detect import (
    count_modules,
    detect_head,
    detect_residual,
    expansion_ratio,
    reject_ape,
    table_span,
)
from hatlib.networks import Weights, register_model

__all__ = ["SwinIR"]


class SwinIR(WindowModel):
    """Swin transformer for image restoration: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Float RGB in [0, 1], any H and W from 1 up; the output is not clamped. The arguments are those of the published
    configurations, so a BasicSR `network_g` section (without its `type`) can be passed as it is.

    Args:
        upscale: 1, 2, 3, 4, 8, ... (what the upsampler knows).
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        embed_dim: channels C of the trunk.
        depths: STLs of each group (RSTB).
        num_heads: attention heads of each group.
        window_size: side of the window; images are padded to a multiple of it.
        mlp_ratio: width of the MLPs over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 if None.
        drop_rate: dropout of features, in the MLPs and after attention.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last STL; rises linearly from 0 over all STLs.
        norm_layer: called with C; a class or a name of timm.
        act_layer: activation of the MLPs; a class or a name of timm.
        attn_layer: attention of the STLs: a registered name, `{name: options}`, or a class. `qkv_bias`, `qk_scale` and
            `attn_drop_rate` belong to the built-in 'window'.
        mlp_layer: MLP of the STLs, called as timm's `Mlp`.
        block_layer: called with `dim=, num_heads=, window_size=, shift_size=, drop_path=` for each block, in place of
            STL; the arguments of STL above then have no effect.
        patch_norm: whether the shallow features are normalized before the first group.
        img_range: factor by which the image is multiplied inside; 255 for JPEG artifacts.
        mean: subtracted before and added after; DIV2K's RGB mean for three channels, else 0, if None.
        upsampler: the head: a registered name, `{name: options}`, a subclass of `hatlib.blocks.Head`, or an instance.
        resi_connection: convolution before each skip, '1conv', '3conv' or 'identity'.
        num_feat: channels of the head.
        use_checkpoint: the same as `set_grad_checkpointing()`.
        ape: absolute position embedding; refused, since it ties the network to one input size.
        img_size: side of the training patches. No part of the network depends on it; the published layout holds
            masks of this size (64 if None, or 128 without upsampler, as close as the window allows).
        patch_size: 1 is the only one.

    Raises:
        HatlibError: for arguments that don't go together.
    """

    trunk_maps = 7.5
    citation = """@inproceedings{liang2021swinir,
  title     = {SwinIR: Image Restoration Using Swin Transformer},
  author    = {Liang, Jingyun and Cao, Jiezhang and Sun, Guolei and Zhang, Kai and Van Gool, Luc and Timofte, Radu},
  booktitle = {ICCV Workshops},
  year      = {2021}
}"""

    tiny_args = dict(embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_feat=8)

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        *,
        out_chans: int | None = None,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: Layer = nn.LayerNorm,
        act_layer: Layer = nn.GELU,
        attn_layer: Any = "window",
        mlp_layer: Callable[..., nn.Module] = Mlp,
        block_layer: Callable[..., nn.Module] | None = None,
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
        block = partial(
            STL,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            attn_layer=attn_layer,
            mlp_layer=mlp_layer,
            act_layer=act_layer,
            norm_layer=norm_layer,
        )
        super().__init__(
            upscale,
            in_chans,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            group=partial(
                RSTB,
                embed_dim,
                window_size=window_size,
                resi_connection=resi_connection,
                block_layer=block_layer or block,
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
        self.img_size = img_size

    def published_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights with the index and mask buffers that the official code stores, by which others detect it."""
        published = dict(self.state_dict() if state_dict is None else state_dict)
        w = self.window_size
        size = self.img_size or (64 if self.upsampler else 128)
        height, width = (size, size) if isinstance(size, int) else size
        for name, module in self.named_modules():
            if isinstance(module, WindowAttention):
                published[f"{name}.relative_position_index"] = relative_position_index(w)
                if module.shift_size:
                    # A map of one window would not be shifted at all.
                    kinds = window_kinds(max(2, height // w), max(2, width // w)).flatten()
                    mask = shifted_window_mask(shifted_window_regions(w, module.shift_size), torch.float32)
                    published[f"{name.removesuffix('.attn')}.attn_mask"] = mask[kinds]
        return published


@register_detector(SwinIR)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Returns the arguments of `SwinIR` that weights in either layout reveal, or None for other networks."""
    block = "layers.0.residual_group.blocks.0"
    needed = ("conv_first.weight", f"{block}.attn.qkv.weight", f"{block}.attn.relative_position_bias_table")
    others = (f"{block}.conv_block.cab.0.weight", "layers.0.residual_group.overlap_attn.qkv.weight")
    if not all(name in state_dict for name in needed) or any(name in state_dict for name in others):
        return None
    reject_ape(state_dict, "SwinIR")
    dim, in_chans = state_dict["conv_first.weight"].shape[:2]
    groups = [f"layers.{i}.residual_group.blocks" for i in range(count_modules(state_dict, "layers"))]
    tables = [state_dict[f"{blocks}.0.attn.relative_position_bias_table"] for blocks in groups]
    return dict(
        in_chans=in_chans,
        embed_dim=dim,
        depths=tuple(count_modules(state_dict, blocks) for blocks in groups),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=(table_span(tables[0]) + 1) // 2,  # offsets in a window range over 2 w - 1 values
        mlp_ratio=expansion_ratio(dim, state_dict[f"{block}.mlp.fc1.weight"].shape[0]),
        qkv_bias=f"{block}.attn.qkv.bias" in state_dict,
        patch_norm="patch_embed.norm.weight" in state_dict,
        resi_connection=detect_residual(state_dict),
        **detect_head(state_dict, in_chans),
    )


def _published(file: str, sha256: str, **facts: Any) -> Weights:
    return Weights(
        file=file,
        url=f"https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/{file}",
        sha256=sha256,
        origin="https://github.com/JingyunLiang/SwinIR (Liang et al.)",
        license="none stated for the weights; the authors' code is Apache-2.0",
        **facts,
    )


_GAN = "For photos as they come: noise, blur and JPEG artifacts; trained with a GAN, so details are invented."

# By arch.tag; the first tag of an arch is its default.
WEIGHTS: dict[str, Weights] = {
    "swinir_s_x2.div2k": _published(
        "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth",
        "193b229909ca89cd8b55de9c9e7fce146ae759d59dfcd78d8feb9dd1d6fa0fd7",
        training_data="DIV2K",
    ),
    "swinir_m_x2.df2k": _published(
        "001_classicalSR_DF2K_s64w8_SwinIR-M_x2.pth",
        "2032ebf8f401dd3ce2fae5f3852117cb72101ec6ed8358faa64c2a3fa09ed4ac",
        training_data="DF2K (DIV2K and Flickr2K)",
        metrics=on_benchmarks(38.42, 34.46, 32.53, 33.81, 39.92),
    ),
    "swinir_m_real_x2.gan": _published(
        "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x2_GAN.pth",
        "f397408977a3e07eb06afb7238d453a12ef35ebab7328a54241f307860dbe342",
        training_data="DIV2K, Flickr2K and OST, degraded as in BSRGAN",
        degradation="real",
        gan=True,
        note=_GAN,
    ),
    "swinir_m_real_x4.gan": _published(
        "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN.pth",
        "b9afb61e65e04eb7f8aba5095d070bbe9af28df76acd0c9405aeb33b814bcfc6",
        training_data="DIV2K, Flickr2K and OST, degraded as in BSRGAN",
        degradation="real",
        gan=True,
        note=_GAN,
    ),
    "swinir_l_real_x4.gan": _published(
        "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.pth",
        "99adfa91350a84c99e946c1eb3d8fce34bc28f57d807b09dc8fe40a316328c0a",
        training_data="DIV2K, Flickr2K, OST, WED, FFHQ, Manga109 and SCUT-CTW1500, degraded as in BSRGAN",
        degradation="real",
        gan=True,
        note=_GAN,
    ),
}

_M: dict[str, Any] = dict(embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6)
_L: dict[str, Any] = dict(embed_dim=240, depths=(6,) * 9, num_heads=(8,) * 9, resi_connection="3conv")
_JPEG: dict[str, Any] = dict(upsampler="", window_size=7, img_range=255.0)

# The published networks (section 4.1 and the official configurations).
SIZES: dict[str, dict[str, Any]] = {
    "swinir_s": dict(embed_dim=60, depths=(6,) * 4, num_heads=(6,) * 4, upsampler="pixelshuffledirect"),
    "swinir_m": _M,
    "swinir_m_real": {**_M, "upsampler": "nearest+conv"},
    "swinir_l_real": {**_L, "upsampler": "nearest+conv"},
    "swinir_m_denoise_gray": {**_M, "upsampler": "", "in_chans": 1},
    "swinir_m_denoise_color": {**_M, "upsampler": ""},
    "swinir_m_jpeg_gray": {**_M, **_JPEG, "in_chans": 1},
    "swinir_m_jpeg_color": {**_M, **_JPEG},
}


@register_model(SwinIR, SIZES["swinir_s"], weights=WEIGHTS)
def swinir_s_x2(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Lightweight SwinIR at x2; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_s_x2", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_s"], weights=WEIGHTS)
def swinir_s_x3(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Lightweight SwinIR at x3; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_s_x3", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_s"], weights=WEIGHTS)
def swinir_s_x4(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Lightweight SwinIR at x4; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_s_x4", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m"], weights=WEIGHTS)
def swinir_m_x2(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Classical SwinIR at x2; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_x2", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m"], weights=WEIGHTS)
def swinir_m_x3(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Classical SwinIR at x3; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_x3", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m"], weights=WEIGHTS)
def swinir_m_x4(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Classical SwinIR at x4; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_x4", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m"], weights=WEIGHTS)
def swinir_m_x8(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Classical SwinIR at x8; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_x8", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_real"], weights=WEIGHTS, task="real")
def swinir_m_real_x2(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Real-world SwinIR, medium at x2; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_real_x2", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_real"], weights=WEIGHTS, task="real")
def swinir_m_real_x4(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Real-world SwinIR, medium at x4; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_real_x4", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_l_real"], weights=WEIGHTS, task="real")
def swinir_l_real_x4(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """Real-world SwinIR, large at x4; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_l_real_x4", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_denoise_gray"], weights=WEIGHTS, task="denoise_gray")
def swinir_m_denoise_gray_x1(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """SwinIR for noise in gray images; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_denoise_gray_x1", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_denoise_color"], weights=WEIGHTS, task="denoise_color")
def swinir_m_denoise_color_x1(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """SwinIR for noise in color images; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_denoise_color_x1", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_jpeg_gray"], weights=WEIGHTS, task="jpeg_gray")
def swinir_m_jpeg_gray_x1(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """SwinIR for JPEG artifacts in gray images; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_jpeg_gray_x1", pretrained, **kwargs)


@register_model(SwinIR, SIZES["swinir_m_jpeg_color"], weights=WEIGHTS, task="jpeg_color")
def swinir_m_jpeg_color_x1(pretrained: bool = False, **kwargs: Any) -> SwinIR:
    """SwinIR for JPEG artifacts in color images; `**kwargs` are constructor arguments of `SwinIR`."""
    return build_model("swinir_m_jpeg_color_x1", pretrained, **kwargs)
