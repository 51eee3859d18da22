"""Feature maps inside a network, after each of its groups."""

import torch
from torch import Tensor, nn

from hatlib.analysis._input import network_input
from hatlib.errors import HatlibError
from hatlib.inference.upscaler import eval_mode

__all__ = ["feature_maps"]


@torch.no_grad()
def feature_maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Feature maps after each group (RHAG, RSTB, ...) of a network, as the papers show them.

    Args:
        model: a network with timm's `forward_intermediates`, as all of hatlib's are. It runs in eval mode.
        image: its input, floating point in [0, 1] or uint8.

    Returns:
        One map for each group, float32, on the CPU.

    Shape: (C, h, w) or (1, C, h, w) -> (num_features, h, w) each

    Raises:
        HatlibError: if the network has no `forward_intermediates`, or `image` is not one such image.
    """
    if not hasattr(model, "forward_intermediates"):
        raise HatlibError(
            f"{type(model).__name__} has no forward_intermediates, timm's way to the features inside a network."
        )
    image = network_input(image, model, "feature_maps")
    with eval_mode(model):
        maps = model.forward_intermediates(image[None], intermediates_only=True)
    return [feature[0].float().cpu() for feature in maps]
