"""Feature maps inside a network, after each of its groups."""

import torch
from torch import Tensor, nn

from hatlib.errors import HatlibError
from hatlib.inference.upscaler import evaluating

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
        HatlibError: if the network has no `forward_intermediates`, or `image` is not one image.
    """
    if not hasattr(model, "forward_intermediates"):
        raise HatlibError(
            f"{type(model).__name__} has no forward_intermediates, timm's way to the features inside a network."
        )
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1:
        raise HatlibError(f"feature_maps takes one image, (C, h, w) or (1, C, h, w), not {tuple(image.shape)}.")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    like = next((p for p in model.parameters() if p.is_floating_point()), image)
    with evaluating(model):
        maps = model.forward_intermediates(image.to(like), intermediates_only=True)
    return [feature[0].float().cpu() for feature in maps]
