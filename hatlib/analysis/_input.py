"""The image that an analysis gives to a network."""

import torch
from torch import Tensor, nn

from hatlib.errors import HatlibError


def network_input(image: Tensor, model: nn.Module, caller: str) -> Tensor:
    """One image as a new tensor, in the network's type and on its device.

    Args:
        image: finite floating point in [0, 1], or uint8.
        model: the network.
        caller: who asks, for the messages.

    Shape: (C, h, w) or (1, C, h, w) -> (C, h, w)

    Raises:
        HatlibError: if it is another kind of tensor.
    """
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or 0 in image.shape:
        raise HatlibError(f"{caller} takes one image, (C, h, w) or (1, C, h, w), not {tuple(image.shape)}.")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    if not image.is_floating_point() or not image.isfinite().all():
        raise HatlibError(f"{caller} takes finite floating-point images in [0, 1] or uint8, not {image.dtype}.")
    like = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), image)
    return image.detach().clone().to(like.detach())
