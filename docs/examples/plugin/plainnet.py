"""A network from outside hatlib. It works by name in hatlib, timm, transformers and every command."""

from typing import Any

from torch import Tensor, nn

import hatlib
from hatlib.blocks import CAB
from hatlib.models import RestorationModel, build_model


class Residual(nn.Module):
    """x + CAB(x), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.cab = CAB(dim, compress_ratio=2, squeeze_factor=4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cab(x)


class PlainNet(RestorationModel):
    """A few channel-attention blocks: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W)."""

    def __init__(self, upscale: int = 2, dim: int = 16, *, depth: int = 2, **common: Any):
        super().__init__(upscale, dim, **{"upsampler": "pixelshuffledirect", **common})
        self.layers = nn.ModuleList(Residual(dim) for _ in range(depth))


@hatlib.register_model(PlainNet)
def plainnet_x2(pretrained: bool = False, **kwargs: Any) -> PlainNet:
    """PlainNet at x2."""
    return build_model("plainnet_x2", pretrained, **kwargs)


@hatlib.register_model(PlainNet, dict(dim=24))
def plainnet_x4(pretrained: bool = False, **kwargs: Any) -> PlainNet:
    """PlainNet at x4, wider."""
    return build_model("plainnet_x4", pretrained, **kwargs)
