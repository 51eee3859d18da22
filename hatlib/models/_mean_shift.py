"""The 1x1 convolutions by which EDSR and RCAN subtract the mean from images in [0, 255], and add it again.

Here a number and a vector do that: x = img_range * (image - mean). The convolutions of published files need not be what
they were made as: they were parameters in training. W (img_range * image) + b is W (img_range * (image - mean)) with
mean = -W^-1 b / img_range, and so W can be taken into the first convolution, the zeros at the border included. What
follows the last convolution goes into it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hatlib.errors import HatlibError
from hatlib.models._adapt import default_mean

__all__ = ["fold_mean_shift", "told_by_mean_shift", "with_mean_shift"]

_BEFORE, _AFTER = "sub_mean", "add_mean"


def told_by_mean_shift(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """`img_range` and `mean`, as far as a published file's convolutions tell them."""
    if not _has(state_dict, _BEFORE):
        return {}
    center = _center(state_dict)
    usual = torch.tensor(default_mean(len(center)), dtype=center.dtype)
    if not center.any():
        return dict(mean=None) if not usual.any() else dict(mean=(0.0,) * len(center))
    # Networks see images in [0, 255] or in [0, 1]; a mean over 1 can only be of the first kind.
    img_range = 255.0 if center.abs().max() > 1 else 1.0
    mean = center / img_range
    return dict(img_range=img_range, mean=None if torch.allclose(mean, usual, atol=1e-6) else tuple(mean.tolist()))


def fold_mean_shift(state_dict: Mapping[str, Tensor], first: str, last: str) -> dict[str, Tensor]:
    """Weights without the convolutions, for a network that has the mean that they tell.

    Args:
        state_dict: weights in our layout, or with the convolutions beside it.
        first: name of the first convolution.
        last: name of the last one.
    """
    folded = {name: value for name, value in state_dict.items() if name.partition(".")[0] not in (_BEFORE, _AFTER)}
    if _has(state_dict, _BEFORE) and f"{first}.weight" in folded:
        matrix = _matrix(state_dict, _BEFORE)
        if not _same(matrix, torch.eye(len(matrix))):
            weight = folded[f"{first}.weight"]
            folded[f"{first}.weight"] = torch.einsum("oihw,ij->ojhw", weight.double(), matrix).to(weight).contiguous()
    if _has(state_dict, _AFTER) and f"{last}.weight" in folded:
        matrix, shift = _matrix(state_dict, _AFTER), state_dict[f"{_AFTER}.bias"].double()
        added = _center(state_dict) if _has(state_dict, _BEFORE) else torch.zeros_like(shift)
        if not (_same(matrix, torch.eye(len(matrix))) and _same(shift, added)):
            weight, bias = folded[f"{last}.weight"], folded[f"{last}.bias"]
            folded[f"{last}.weight"] = torch.einsum("po,oihw->pihw", matrix, weight.double()).to(weight).contiguous()
            folded[f"{last}.bias"] = (matrix @ bias.double() + shift - added).to(bias)
    return folded


def with_mean_shift(
    state_dict: dict[str, Tensor], img_range: float, mean: Sequence[float], same_channels: bool
) -> dict[str, Tensor]:
    """Weights with the convolutions; without, where they would do nothing.

    Their network sees images in [0, 1] where `img_range` is 1, and in [0, 255] otherwise.

    Args:
        state_dict: the weights.
        img_range: of the network.
        mean: of the network.
        same_channels: whether the network adds the mean again.

    Raises:
        HatlibError: if the layout can't express them.
    """
    if img_range == 1 and not any(mean):
        return dict(state_dict)
    like = next(iter(state_dict.values()))
    seen = 1 if img_range == 1 else 255
    if img_range != seen and not same_channels:
        raise HatlibError(
            f"The layout has no place for img_range={img_range} of a network that does not add the mean again: only 1 "
            "and 255 can be written."
        )
    eye = torch.eye(len(mean), dtype=torch.float64)[:, :, None, None]
    mean = torch.tensor(mean).double()
    before = {f"{_BEFORE}.weight": eye * (img_range / seen), f"{_BEFORE}.bias": -mean * img_range}
    after = {f"{_AFTER}.weight": eye * (seen / img_range), f"{_AFTER}.bias": mean * seen} if same_channels else {}
    shifts = {name: value.to(like) for name, value in (before | after).items()}
    return {**shifts, **state_dict}


def _has(state_dict: Mapping[str, Tensor], name: str) -> bool:
    return f"{name}.weight" in state_dict and f"{name}.bias" in state_dict


def _matrix(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    """The convolution as a matrix (C, C)."""
    return state_dict[f"{name}.weight"].double()[:, :, 0, 0]


def _center(state_dict: Mapping[str, Tensor]) -> Tensor:
    """What the first convolution takes to zero, (C,): the mean in the range of the network's images."""
    center, singular = torch.linalg.solve_ex(_matrix(state_dict, _BEFORE), -state_dict[f"{_BEFORE}.bias"].double())
    if singular:
        raise HatlibError(f"The weights of {_BEFORE} mix the channels so that they can't be told apart any more.")
    return center


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a), rtol=1e-6, atol=1e-6)
