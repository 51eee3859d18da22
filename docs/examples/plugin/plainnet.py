"""A network that is not hatlib's, registered with it.

It is created by name, in hatlib and timm, saved, shared and loaded by hatlib, timm and transformers, and used by the
command line: `hatlib upscale photo.png --model plainnet_x2 --checkpoint plainnet.pth`.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hatlib import register_model
from hatlib.blocks import CAB
from hatlib.models import RestorationModel, build_model
from hatlib.registry import register_detector


class Residual(nn.Module):
    """x + CAB(x), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.cab = CAB(dim, compress_ratio=2, squeeze_factor=4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cab(x)


class PlainNet(RestorationModel):
    """A few channel-attention blocks: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W)."""

    def __init__(
        self,
        upscale: int = 2,
        in_chans: int = 3,
        out_chans: int | None = None,
        dim: int = 16,
        depth: int = 2,
        img_range: float = 1.0,
        mean: tuple[float, ...] | None = None,
    ):
        super().__init__(
            upscale=upscale, in_chans=in_chans, out_chans=out_chans, img_range=img_range, mean=mean, multiple=1
        )
        self.num_features = self.num_feat = dim
        self.upsampler = "pixelshuffledirect"
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.layers = nn.ModuleList(Residual(dim) for _ in range(depth))
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.reset_upsampler(upscale)


@register_detector(PlainNet)
def detect(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """So that `hatlib.load_checkpoint` knows its files. Color in, color out is taken for granted."""
    if "layers.0.cab.cab.0.weight" not in state_dict:
        return None
    dim, in_chans = state_dict["conv_first.weight"].shape[:2]
    upscale = math.isqrt(state_dict["upsample.0.weight"].shape[0] // in_chans)
    depth = sum(name.endswith(".cab.cab.0.weight") for name in state_dict)
    return dict(upscale=upscale, in_chans=in_chans, dim=dim, depth=depth)


@register_model(model_class=PlainNet, model_args=dict(upscale=2))
def plainnet_x2(pretrained: bool = False, **kwargs: Any) -> PlainNet:
    """PlainNet at x2."""
    return build_model(PlainNet, "plainnet_x2", pretrained, **kwargs)


@register_model(model_class=PlainNet, model_args=dict(upscale=4, dim=24))
def plainnet_x4(pretrained: bool = False, **kwargs: Any) -> PlainNet:
    """PlainNet at x4, wider."""
    return build_model(PlainNet, "plainnet_x4", pretrained, **{"dim": 24, **kwargs})
