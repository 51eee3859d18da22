"""Networks that are not ours, through spandrel: for upscaling, evaluating and analyzing them."""

from typing import Any

import torch
from torch import Tensor, nn

from hatlib.blocks import pad_to_multiple
from hatlib.errors import HatlibError

__all__ = ["ForeignModel", "load_foreign"]


class ForeignModel(nn.Module):
    """A network of spandrel's with the interface of ours: (B, in_chans, H, W) -> (B, out_chans, s * H, s * W).

    Float RGB in [0, 1], of any size that the network can be padded to; the output is not clamped, and gradients flow.

    Args:
        descriptor: spandrel's `ImageModelDescriptor`.

    Attributes:
        architecture: spandrel's name of it.
        upscale: output size over input size.
    """

    def __init__(self, descriptor: Any):
        super().__init__()
        self.model = descriptor.model
        self.architecture = descriptor.architecture.name
        self.upscale = descriptor.scale
        self.in_chans = descriptor.input_channels
        self.out_chans = descriptor.output_channels
        self._size = descriptor.size_requirements
        # What spandrel makes of the network's own output, where that is not the image itself.
        self._call = descriptor._call_fn

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape:
            raise HatlibError(f"The model takes images (B, {self.in_chans}, H, W), not {tuple(x.shape)}.")
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self._size.multiple_of)
        smallest = max(self._size.minimum, max(x.shape[-2:]) if self._size.square else 0)
        if min(x.shape[-2:]) < smallest:
            rows, columns = (max(smallest - side, 0) for side in x.shape[-2:])
            x = nn.functional.pad(x, (0, columns, 0, rows), mode="replicate")
        return self._call(self.model, x)[..., : height * self.upscale, : width * self.upscale]


def load_foreign(state_dict: dict[str, Tensor], source: str, overrides: dict[str, Any]) -> ForeignModel:
    """The network that spandrel detects in a state dict, in eval mode.

    Raises:
        HatlibError: if spandrel is not installed, knows no such network, or arguments are given, which it can't take.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise HatlibError(
            f"{source!r} is of no architecture that hatlib has; it may be one of spandrel's, for which install "
            "the extra 'spandrel' of hatlib (pip install '.[spandrel]' in its checkout)."
        ) from error
    if overrides:
        raise HatlibError(f"{source!r} is of no architecture that hatlib has, so it takes no {', '.join(overrides)}.")
    try:
        descriptor = ModelLoader(torch.device("cpu")).load_from_state_dict(state_dict)
    except UnsupportedModelError as error:
        raise HatlibError(f"{source!r} is of no architecture that hatlib or spandrel knows.") from error
    except Exception as error:  # spandrel's own recognition stumbles over a damaged or unusual state dict anyhow
        raise HatlibError(f"spandrel can't load {source!r}: {type(error).__name__}: {error}".split("\n")[0]) from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise HatlibError(f"{source!r} is a {descriptor.architecture.name}, which takes more than an image.")
    return ForeignModel(descriptor).eval()
