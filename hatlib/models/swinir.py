"""SwinIR, image restoration by Swin transformer layers (arXiv 2108.10257, ICCV workshops 2021).

A shallow convolution, residual Swin transformer blocks, a convolution with a skip around them, and a head for each
task. Parameter names are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hatlib.blocks import RSTB, WindowAttention, relative_position_index
from hatlib.blocks.window import shifted_window_regions, window_kinds
from hatlib.models._weights import on_benchmarks
from hatlib.models._window import WindowModel
from hatlib.models.build import register_arch
from hatlib.models.detect import (
    count_modules,
    detect_head,
    detect_residual,
    expansion_ratio,
    reject_ape,
    table_span,
)
from hatlib.registry import Weights, register_detector

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
        norm_layer: called with C.
        patch_norm: whether the shallow features are normalized before the first group.
        img_range: factor by which the image is multiplied inside; 255 for JPEG artifacts.
        mean: subtracted before and added after; DIV2K's RGB mean for three channels, else 0, if None.
        upsampler: kind of head, see `hatlib.blocks.create_head`.
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

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
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
            group=lambda depth, heads, rates: RSTB(
                embed_dim,
                depth,
                heads,
                window_size,
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
                    regions = shifted_window_regions(w, module.shift_size)[kinds]
                    apart = (regions[:, :, None] != regions[:, None, :]).float()
                    published[f"{name.removesuffix('.attn')}.attn_mask"] = -100.0 * apart
        return published


@register_detector(SwinIR)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of `SwinIR` that weights tell, published or ours; None for other networks' weights."""
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
pretrained: dict[str, Weights] = {
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
        note=_GAN,
    ),
    "swinir_m_real_x4.gan": _published(
        "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN.pth",
        "b9afb61e65e04eb7f8aba5095d070bbe9af28df76acd0c9405aeb33b814bcfc6",
        training_data="DIV2K, Flickr2K and OST, degraded as in BSRGAN",
        note=_GAN,
    ),
    "swinir_l_real_x4.gan": _published(
        "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.pth",
        "99adfa91350a84c99e946c1eb3d8fce34bc28f57d807b09dc8fe40a316328c0a",
        training_data="DIV2K, Flickr2K, OST, WED, FFHQ, Manga109 and SCUT-CTW1500, degraded as in BSRGAN",
        note=_GAN,
    ),
}

_S: dict[str, Any] = dict(embed_dim=60, depths=(6,) * 4, num_heads=(6,) * 4, upsampler="pixelshuffledirect")
_M: dict[str, Any] = dict(embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6)
_L: dict[str, Any] = dict(embed_dim=240, depths=(6,) * 9, num_heads=(8,) * 9, resi_connection="3conv")
_REAL = dict(upsampler="nearest+conv")
_SAME_SIZE = dict(upsampler="")
_JPEG = dict(upsampler="", window_size=7, img_range=255.0)

# The published networks (section 4.1 and the official configurations): name, task, scales, arguments.
_NETWORKS: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
    ("swinir_s", "sr", (2, 3, 4), _S),
    ("swinir_m", "sr", (2, 3, 4, 8), _M),
    ("swinir_m_real", "real", (2, 4), {**_M, **_REAL}),
    ("swinir_l_real", "real", (4,), {**_L, **_REAL}),
    ("swinir_m_denoise_gray", "denoise_gray", (1,), {**_M, **_SAME_SIZE, "in_chans": 1}),
    ("swinir_m_denoise_color", "denoise_color", (1,), {**_M, **_SAME_SIZE}),
    ("swinir_m_jpeg_gray", "jpeg_gray", (1,), {**_M, **_JPEG, "in_chans": 1}),
    ("swinir_m_jpeg_color", "jpeg_color", (1,), {**_M, **_JPEG}),
]

# What shrinks any of the models above for tests that go through the whole registry.
tiny_overrides: dict[str, Any] = dict(embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_feat=8)

for _name, _task, _scales, _arguments in _NETWORKS:
    for _scale in _scales:
        globals()[f"{_name}_x{_scale}"] = register_arch(
            SwinIR, _name, _scale, _arguments, f"SwinIR for the task {_task!r}", _task
        )
