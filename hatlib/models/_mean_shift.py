"""The 1x1 convolutions with which EDSR and RCAN subtract the mean from images in [0, 255] and add it at the end.

hatlib computes x = img_range * (image - mean) instead. The convolutions of a published file are read as these two
arguments if they are what the authors construct: a multiple of the identity and its inverse, with the same mean. Files
in which the convolutions were trained into anything else are left to spandrel.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hatlib.errors import HatlibError
from hatlib.models._adapt import default_mean

__all__ = ["drop_mean_shift", "infer_mean_shift", "is_mean_shift", "with_mean_shift"]

_BEFORE, _AFTER = "sub_mean", "add_mean"


def infer_mean_shift(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns `img_range` and `mean`, as far as the convolutions of a published file determine them."""
    if not _has(state_dict, _BEFORE):
        return {}
    factor, center = _factor_and_center(state_dict)
    default = torch.tensor(default_mean(len(center)), dtype=center.dtype)
    if not center.any():
        ranges = {} if factor == 1 else dict(img_range=255.0 * factor)
        return dict(mean=None if not default.any() else (0.0,) * len(center), **ranges)
    # Published networks take images in [0, 255] or in [0, 1]. A mean above 1 belongs to the first kind.
    input_range = 255.0 if center.abs().max() > 1 else 1.0
    mean = center / input_range
    same = torch.allclose(mean, default, atol=1e-6)
    return dict(img_range=input_range * factor, mean=None if same else tuple(mean.tolist()))


def is_mean_shift(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the convolutions only shift and scale the image, and undo that at the end; True without convolutions."""
    if not _has(state_dict, _BEFORE):
        return not _has(state_dict, _AFTER)
    weight = _matrix(state_dict, _BEFORE)
    factor, center = _factor_and_center(state_dict)
    identity = torch.eye(len(weight), dtype=weight.dtype)
    if factor <= 0 or not _close(weight, factor * identity):
        return False
    if not _has(state_dict, _AFTER):
        return True
    after = _matrix(state_dict, _AFTER)
    return (
        after.shape == weight.shape
        and _close(after, identity / factor)
        and _close(state_dict[f"{_AFTER}.bias"].double(), center)
    )


def drop_mean_shift(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights without the convolutions, for a network with the arguments of `infer_mean_shift`.

    Raises:
        HatlibError: if the convolutions do more than subtract and add a mean.
    """
    if not is_mean_shift(state_dict):
        raise HatlibError(
            f"The convolutions {_BEFORE} and {_AFTER} were trained and no longer subtract and add a mean; "
            "hatlib.load loads such a file with spandrel if spandrel knows the architecture."
        )
    return {name: value for name, value in state_dict.items() if name.partition(".")[0] not in (_BEFORE, _AFTER)}


def with_mean_shift(
    state_dict: dict[str, Tensor], img_range: float, mean: Sequence[float], same_channels: bool
) -> dict[str, Tensor]:
    """Returns the weights with the convolutions, or unchanged if the convolutions would do nothing.

    The published network takes images in [0, 1] if `img_range` is 1, and in [0, 255] otherwise.

    Args:
        state_dict: weights.
        img_range: factor on the image.
        mean: mean that is subtracted, one value per channel in [0, 1].
        same_channels: whether the network adds the mean at the end.

    Raises:
        HatlibError: if the layout cannot express the arguments.
    """
    if img_range == 1 and not any(mean):
        return dict(state_dict)
    reference = next(iter(state_dict.values()))
    input_range = 1 if img_range == 1 else 255
    factor = img_range / input_range
    if factor != 1 and not same_channels:
        raise HatlibError(
            f"The published layout cannot hold img_range={img_range} for a network that does not add the mean at the "
            "end: only 1 and 255 can be written."
        )
    identity = torch.eye(len(mean), dtype=torch.float64)[:, :, None, None]
    center = torch.tensor(mean).double() * input_range
    shifts = {f"{_BEFORE}.weight": identity * factor, f"{_BEFORE}.bias": -center * factor}
    if same_channels:
        shifts |= {f"{_AFTER}.weight": identity / factor, f"{_AFTER}.bias": center}
    return {**{name: value.to(reference) for name, value in shifts.items()}, **state_dict}


def _has(state_dict: Mapping[str, Tensor], name: str) -> bool:
    return f"{name}.weight" in state_dict and f"{name}.bias" in state_dict


def _matrix(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    """Weight of a 1x1 convolution as a matrix (C, C)."""
    return state_dict[f"{name}.weight"].double()[:, :, 0, 0]


def _factor_and_center(state_dict: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    """The factor of the first convolution, and the image value (C,) that it maps to zero."""
    factor = _matrix(state_dict, _BEFORE)[0, 0].item()
    bias = state_dict[f"{_BEFORE}.bias"].double()
    return factor, -bias / factor if factor else torch.zeros_like(bias)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-5)
