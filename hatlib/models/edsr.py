"""EDSR, enhanced deep residual networks (arXiv 1707.02921, CVPR workshops 2017).

Residual blocks without normalization, a skip around them, and a pixel shuffle. The authors' key layout (EDSR-PyTorch)
and BasicSR's are read; the authors' is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hatlib.blocks import ResBlock
from hatlib.detection import register_detector
from hatlib.models._conv import BASICSR, ORIGINAL, ConvModel, detect_ends
from hatlib.models._keys import KeyTable
from hatlib.models._mean_shift import is_mean_shift
from hatlib.models.build import build_model
from hatlib.models.detect import count_modules
from hatlib.networks import register_model

__all__ = ["EDSR"]


class EDSR(ConvModel):
    """Enhanced deep residual network: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Float RGB in [0, 1], any H and W from 1 up; the output is not clamped. The arguments are those of BasicSR's
    configurations, so a `network_g` section (without its `type`) can be passed as it is.

    Args:
        upscale: 1, 2, 3, 4, 8, ... (what the upsampler knows).
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        num_feat: channels of the network.
        num_block: residual blocks.
        res_scale: weight of each block's branch; 0.1 in the wide network.
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

    keys = KeyTable(
        (ORIGINAL, BASICSR),
        [
            ("conv_first", "head.0", "conv_first"),
            ("layers.{b}.conv1", "body.{b}.body.0", "body.{b}.conv1"),
            ("layers.{b}.conv2", "body.{b}.body.2", "body.{b}.conv2"),
            ("conv_after_body", "body.{B}", "conv_after_body"),
            ("upsample.{i}", "tail.0.{i}", "upsample.{i}"),
            ("conv_last", "tail.1", "conv_last"),
        ],
    )
    citation = """@inproceedings{lim2017edsr,
  title     = {Enhanced Deep Residual Networks for Single Image Super-Resolution},
  author    = {Lim, Bee and Son, Sanghyun and Kim, Heewon and Nah, Seungjun and Lee, Kyoung Mu},
  booktitle = {CVPR Workshops},
  year      = {2017}
}"""

    tiny_args = dict(num_feat=8, num_block=3)

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        *,
        out_chans: int | None = None,
        num_feat: int = 64,
        num_block: int = 16,
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
            layers=[ResBlock(num_feat, res_scale=res_scale) for _ in range(num_block)],
        )


@register_detector(EDSR)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Returns the arguments of `EDSR` that weights in any layout reveal, or None for weights of another network."""
    ours = EDSR.keys.read(state_dict)
    needed = ("conv_first", "layers.0.conv1", "layers.0.conv2", "conv_after_body")
    if not all(f"{name}.weight" in ours for name in needed) or ours["conv_first.weight"].shape[-1] != 3:
        return None
    if not is_mean_shift(state_dict):
        return None
    return dict(num_block=count_modules(ours, "layers"), **detect_ends(state_dict, ours))


# The published sizes (section 4.1 and the authors' code): the baseline, and the full network.
SIZES: dict[str, dict[str, Any]] = {
    "edsr_m": dict(num_feat=64, num_block=16),
    "edsr": dict(num_feat=256, num_block=32, res_scale=0.1),
}


@register_model(EDSR, SIZES["edsr_m"])
def edsr_m_x2(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR baseline at x2; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_m_x2", pretrained, **kwargs)


@register_model(EDSR, SIZES["edsr_m"])
def edsr_m_x3(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR baseline at x3; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_m_x3", pretrained, **kwargs)


@register_model(EDSR, SIZES["edsr_m"])
def edsr_m_x4(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR baseline at x4; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_m_x4", pretrained, **kwargs)


@register_model(EDSR, SIZES["edsr"])
def edsr_x2(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR at x2; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_x2", pretrained, **kwargs)


@register_model(EDSR, SIZES["edsr"])
def edsr_x3(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR at x3; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_x3", pretrained, **kwargs)


@register_model(EDSR, SIZES["edsr"])
def edsr_x4(pretrained: bool = False, **kwargs: Any) -> EDSR:
    """EDSR at x4; `**kwargs` are constructor arguments of `EDSR`."""
    return build_model("edsr_x4", pretrained, **kwargs)
