"""What is compared: models by name, weight file or function, and bicubic interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hatlib.data import imresize
from hatlib.errors import HatlibError
from hatlib.hub.resolve import BICUBIC, Source, published_weights, resolve
from hatlib.load import load
from hatlib.metrics import rgb_to_y
from hatlib.networks import split_name

__all__ = ["Candidate", "bicubic", "bicubic_luma", "resolve_models"]


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison.

    Attributes:
        name: what tables call it.
        model: maps (B, 3, H, W) in [0, 1] to (B, 3, scale * H, scale * W); None is bicubic interpolation.
        psnr: published PSNR in dB by benchmark.
        ssim: published SSIM by benchmark.
    """

    name: str
    model: nn.Module | None = None
    psnr: Mapping[str, float] = field(default_factory=dict)
    ssim: Mapping[str, float] = field(default_factory=dict)


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """The baseline of EDSR, SwinIR and HAT: the 8-bit RGB image enlarged in 8 bits by MATLAB's rule.

    Shape: (B, 3, H, W), uint8 -> (B, 3, scale * H, scale * W), uint8
    """
    return imresize(lr, scale)


def bicubic_luma(hr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The baseline of SRCNN and VDSR, whose figures most papers quote: the luma alone, shrunk and enlarged.

    The luma of the original is rounded to 8 bits, and the steps in between are not.

    Args:
        hr: originals, uint8, of which both sides are multiples of the scale; gray ones are their own luma, and are
            not to be made RGB before.
        scale: the factor.

    Returns:
        The enlarged and the original luma over 255, float64, for `hatlib.metrics.psnr` with border=scale.

    Shape: (B, 3 or 1, H, W) -> (B, 1, H, W), (B, 1, H, W)
    """
    luma = hr.double() if hr.shape[1] == 1 else rgb_to_y(hr / 255.0).round()
    return imresize(imresize(luma, 1 / scale), scale) / 255, luma / 255


def resolve_models(specs: Sequence[str], scale: int | None = None) -> tuple[list[Candidate], int]:
    """Loads what `hatlib evaluate` was asked to compare, bicubic first.

    Args:
        specs: sources that `hatlib.load` takes; 'bicubic' is always the first row.
        scale: the scale, where no source declares one.

    Returns:
        The rows, and their common scale.

    Raises:
        HatlibError: If one can't be loaded, no scale is known, or scales differ.
    """
    sources = {spec: resolve(spec, scale=scale) for spec in dict.fromkeys(specs) if spec != BICUBIC}
    # A size has the scale that was asked for; whether the others have it is checked for all at once below.
    loaded = {spec: load(spec, scale=scale if _is_size(spec, source) else None) for spec, source in sources.items()}
    scales = {spec: getattr(model, "upscale", scale) for spec, model in loaded.items()}
    if silent := [spec for spec, s in scales.items() if s is None]:
        raise HatlibError(f"{silent[0]!r} does not declare its scale (an attribute `upscale`); add --scale.")
    known = set(scales.values()) | ({scale} if scale is not None else set())
    if not known:
        raise HatlibError("Bicubic interpolation has no scale of its own: pass scale= (--scale in commands).")
    if len(known) > 1:
        found = ", ".join(f"{spec} is x{s}" for spec, s in scales.items())
        wish = f", and --scale {scale} was asked for" if scale is not None else ""
        raise HatlibError(f"Only models of one scale can be compared: {found}{wish}.")
    scale = known.pop()
    rows = [Candidate(BICUBIC)]
    for spec, model in loaded.items():
        in_chans = getattr(model, "in_chans", 3)
        if in_chans != 3:
            raise HatlibError(f"{spec!r} takes images of {in_chans} channels; the protocol is that of RGB models.")
        if not hasattr(model, "upscale"):
            model.upscale = scale
        label, weights = sources[spec].label, published_weights(sources[spec])
        name = spec if any(row.name == label for row in rows) else label
        rows.append(Candidate(name, model, weights.metrics if weights else {}, weights.ssim if weights else {}))
    return rows, scale


def _is_size(spec: str, source: Source) -> bool:
    return source.kind == "name" and split_name(spec)[0] != split_name(source.place)[0]
