"""What the shapes of weights tell of constructor arguments, for families with the common heads."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hatlib.errors import HatlibError

__all__ = [
    "count_modules",
    "detect_head",
    "detect_residual",
    "expansion_ratio",
    "reduction_ratio",
    "reject_ape",
    "table_span",
]


def count_modules(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules there are in the list `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in state_dict if (match := pattern.match(name))})


def table_span(table: Tensor) -> int:
    """Root of the rows of a bias table, which has one for each offset in a square."""
    return math.isqrt(table.shape[0])


def reduction_ratio(width: int, inner: int) -> float:
    """The ratio for which width // ratio is `inner`: of several the one that divides the width, else the smallest."""
    if width % inner == 0:
        return width // inner
    for ratio in range(1, width + 1):
        if width // ratio == inner:
            return ratio
    return width / (inner + 0.5)


def expansion_ratio(width: int, product: int) -> float:
    """The ratio for which int(width * ratio) is `product`."""
    ratio = product / width
    return ratio if int(width * ratio) == product else (product + 0.5) / width


def detect_residual(state_dict: Mapping[str, Tensor]) -> str:
    """`resi_connection` of a network of window attention."""
    kinds = {"conv_after_body.weight": "1conv", "conv_after_body.0.weight": "3conv"}
    return next((kind for name, kind in kinds.items() if name in state_dict), "identity")


def reject_ape(state_dict: Mapping[str, Tensor], name: str) -> None:
    """Raises HatlibError for weights that are tied to one input size."""
    if "absolute_pos_embed" in state_dict:
        raise HatlibError(f"The weights have an absolute position embedding (ape=True); hatlib has no {name} with it.")


def detect_head(state_dict: Mapping[str, Tensor], in_chans: int) -> dict[str, Any]:
    """upscale, upsampler, num_feat (where the head has one) and out_chans (None if as `in_chans`).

    Raises:
        HatlibError: if it is no head that hatlib has.
    """
    head: dict[str, Any]
    if "conv_before_upsample.0.weight" in state_dict:
        num_feat = state_dict["conv_before_upsample.0.weight"].shape[0]
        if "conv_up1.weight" in state_dict:
            ups = len([name for name in state_dict if re.fullmatch(r"conv_up\d+\.weight", name)])
            head = dict(upsampler="nearest+conv", upscale=2**ups, num_feat=num_feat)
        else:
            head = dict(upsampler="pixelshuffle", upscale=_shuffled(state_dict, num_feat), num_feat=num_feat)
        out_chans = state_dict["conv_last.weight"].shape[0]
    elif "upsample.0.weight" in state_dict and "conv_last.weight" in state_dict:
        out_chans, dim = state_dict["conv_last.weight"].shape[:2]
        head = dict(upsampler="pixelshuffle+conv", upscale=_shuffled(state_dict, dim))
    elif "upsample.0.weight" in state_dict:
        # One convolution gives scale^2 * out_chans channels, of which only the product is known.
        channels = state_dict["upsample.0.weight"].shape[0]
        out_chans = next((c for c in (in_chans, 3, 1) if math.isqrt(channels // c) ** 2 * c == channels), 0)
        if not out_chans:
            raise HatlibError(f"No scale and channel count have {channels} channels before a direct pixel shuffle.")
        head = dict(upsampler="pixelshuffledirect", upscale=math.isqrt(channels // out_chans))
    elif "conv_last.weight" in state_dict:
        out_chans = state_dict["conv_last.weight"].shape[0]
        head = dict(upsampler="", upscale=1)
    else:
        raise HatlibError(
            "The weights have no head that can be detected; pass them as checkpoint_path= to hatlib.create_model with "
            "the name of the model and its upsampler."
        )
    return {**head, "out_chans": None if out_chans == in_chans else out_chans}


def _shuffled(state_dict: Mapping[str, Tensor], width: int) -> int:
    """Scale of the convolutions before pixel shuffles that keep `width` channels."""
    steps = [v.shape[0] // width for n, v in state_dict.items() if re.fullmatch(r"upsample\.\d+\.weight", n)]
    return math.isqrt(math.prod(steps))
