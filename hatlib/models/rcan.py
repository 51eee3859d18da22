"""RCAN, residual channel attention networks (arXiv 1807.02758, ECCV 2018).

Residual groups of residual channel attention blocks, within a skip around them all, and a pixel shuffle. The authors'
key layout (that of EDSR-PyTorch) and BasicSR's are read; the authors' is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hatlib.blocks import RCAB, ResidualGroup, residual_conv
from hatlib.detection import register_detector
from hatlib.models._conv import BASICSR, ORIGINAL, ConvModel, detect_ends
from hatlib.models._keys import KeyTable
from hatlib.models._mean_shift import is_mean_shift
from hatlib.models.build import build_model
from hatlib.models.detect import count_modules, reduction_ratio
from hatlib.networks import register_model

__all__ = ["RCAN"]

_OURS, _THEIRS = "layers.{g}.residual_group.blocks.{b}.rcab", "body.{g}.body.{b}.body"
_BASICSR = "body.{g}.residual_group.{b}.rcab"
_KEYS = KeyTable(
    (ORIGINAL, BASICSR),
    [
        ("conv_first", "head.0", "conv_first"),
        (f"{_OURS}.0", f"{_THEIRS}.0", f"{_BASICSR}.0"),
        (f"{_OURS}.2", f"{_THEIRS}.2", f"{_BASICSR}.2"),
        (f"{_OURS}.3.attention.1", f"{_THEIRS}.3.conv_du.0", f"{_BASICSR}.3.attention.1"),
        (f"{_OURS}.3.attention.3", f"{_THEIRS}.3.conv_du.2", f"{_BASICSR}.3.attention.3"),
        ("layers.{g}.conv", "body.{g}.body.{B}", "body.{g}.conv"),
        ("conv_after_body", "body.{G}", "conv_after_body"),
        ("upsample.{i}", "tail.0.{i}", "upsample.{i}"),
        ("conv_last", "tail.1", "conv_last"),
    ],
)


class RCAN(ConvModel):
    """Residual channel attention network: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Float RGB in [0, 1], any H and W from 1 up; the output is not clamped. The arguments are those of BasicSR's
    configurations, so a `network_g` section (without its `type`) can be passed as it is.

    Args:
        upscale: 1, 2, 3, 4, 8, ... (what the upsampler knows).
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        num_feat: channels of the network.
        num_group: residual groups.
        num_block: residual channel attention blocks of each group.
        squeeze_factor: reduction of the channel attention.
        res_scale: weight of each block's branch.
        img_range: factor by which the image is multiplied inside.
        mean: subtracted before and added after; DIV2K's RGB mean for three channels, else 0, if None.
        upsampler: the head: a registered name, `{name: options}`, a subclass of `hatlib.blocks.Head`, or an instance.
        use_checkpoint: the same as `set_grad_checkpointing()`.
        num_in_ch: BasicSR's name of `in_chans`.
        num_out_ch: BasicSR's name of `out_chans`.
        rgb_mean: BasicSR's name of `mean`.

    Raises:
        HatlibError: for arguments that don't go together.
    """

    keys = _KEYS
    citation = """@inproceedings{zhang2018rcan,
  title     = {Image Super-Resolution Using Very Deep Residual Channel Attention Networks},
  author    = {Zhang, Yulun and Li, Kunpeng and Li, Kai and Wang, Lichen and Zhong, Bineng and Fu, Yun},
  booktitle = {ECCV},
  year      = {2018}
}"""

    tiny_args = dict(num_feat=8, num_group=2, num_block=2, squeeze_factor=4)

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        *,
        out_chans: int | None = None,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 20,
        squeeze_factor: float = 16,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        mean: Sequence[float] | None = None,
        upsampler: Any = "pixelshuffle+conv",
        use_checkpoint: bool = False,
        num_in_ch: int | None = None,
        num_out_ch: int | None = None,
        rgb_mean: Sequence[float] | None = None,
    ):
        super().__init__(
            upscale,
            in_chans,
            out_chans=out_chans,
            num_feat=num_feat,
            img_range=img_range,
            mean=mean,
            upsampler=upsampler,
            use_checkpoint=use_checkpoint,
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            rgb_mean=rgb_mean,
            layers=[
                ResidualGroup(
                    [RCAB(num_feat, squeeze_factor, res_scale=res_scale) for _ in range(num_block)],
                    residual_conv(num_feat, "1conv"),
                    layout="NCHW",
                )
                for _ in range(num_group)
            ],
        )


@register_detector(RCAN)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Returns the arguments of `RCAN` that weights in any layout reveal, or None for weights of another network."""
    ours = RCAN.keys.read(state_dict)
    squeeze = "layers.0.residual_group.blocks.0.rcab.3.attention.1.weight"
    needed = ("conv_first.weight", "conv_after_body.weight", "layers.0.conv.weight", squeeze)
    if not all(name in ours for name in needed) or ours["conv_first.weight"].shape[-1] != 3:
        return None
    if not is_mean_shift(state_dict):
        return None
    inner, num_feat = ours[squeeze].shape[:2]
    return dict(
        num_group=count_modules(ours, "layers"),
        num_block=count_modules(ours, "layers.0.residual_group.blocks"),
        squeeze_factor=reduction_ratio(num_feat, inner),
        **detect_ends(state_dict, ours),
    )


@register_model(RCAN)
def rcan_x2(pretrained: bool = False, **kwargs: Any) -> RCAN:
    """RCAN at x2; `**kwargs` are constructor arguments of `RCAN`."""
    return build_model("rcan_x2", pretrained, **kwargs)


@register_model(RCAN)
def rcan_x3(pretrained: bool = False, **kwargs: Any) -> RCAN:
    """RCAN at x3; `**kwargs` are constructor arguments of `RCAN`."""
    return build_model("rcan_x3", pretrained, **kwargs)


@register_model(RCAN)
def rcan_x4(pretrained: bool = False, **kwargs: Any) -> RCAN:
    """RCAN at x4; `**kwargs` are constructor arguments of `RCAN`."""
    return build_model("rcan_x4", pretrained, **kwargs)


@register_model(RCAN)
def rcan_x8(pretrained: bool = False, **kwargs: Any) -> RCAN:
    """RCAN at x8; `**kwargs` are constructor arguments of `RCAN`."""
    return build_model("rcan_x8", pretrained, **kwargs)
