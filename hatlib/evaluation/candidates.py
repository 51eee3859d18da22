"""What is compared: models by name, weight file or function, and bicubic interpolation."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from hatlib.checkpoint import WEIGHT_SUFFIXES, sha256
from hatlib.data import imresize
from hatlib.errors import HatlibError
from hatlib.load import create_model, load_checkpoint
from hatlib.metrics import rgb_to_y
from hatlib.networks import Weights, list_models, model_info

__all__ = ["Candidate", "bicubic", "bicubic_luma", "resolve_models"]

BICUBIC = "bicubic"


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
        specs: each a name of `hatlib.list_models()`, with a tag or without, 'hf-hub:...' or 'local-dir:...'; a weight
            file; 'module:function' that returns a network; or 'bicubic', which is there anyhow.
        scale: the scale, where nothing else tells it.

    Returns:
        The rows, and their common scale.

    Raises:
        HatlibError: If one can't be loaded, no scale is known, or scales differ.
    """
    loaded = [(spec, _load(spec)) for spec in dict.fromkeys(specs) if spec != BICUBIC]
    scales = {spec: getattr(model, "upscale", scale) for spec, (model, _) in loaded}
    if silent := [spec for spec, s in scales.items() if s is None]:
        raise HatlibError(f"{silent[0]!r} does not tell its scale (an attribute `upscale`): add --scale.")
    known = set(scales.values()) | ({scale} if scale is not None else set())
    if not known:
        raise HatlibError("Which scale? Bicubic interpolation alone needs --scale.")
    if len(known) > 1:
        found = ", ".join(f"{spec} is x{s}" for spec, s in scales.items())
        wish = f", and --scale {scale} was asked for" if scale is not None else ""
        raise HatlibError(f"Only models of one scale can be compared: {found}{wish}.")
    scale = known.pop()
    rows = [Candidate(BICUBIC)]
    for spec, (model, weights) in loaded:
        in_chans = getattr(model, "in_chans", 3)
        if in_chans != 3:
            raise HatlibError(f"{spec!r} takes images of {in_chans} channels; the protocol is that of RGB models.")
        if not hasattr(model, "upscale"):
            model.upscale = scale
        short = Path(spec).stem if spec.endswith(WEIGHT_SUFFIXES) else spec
        name = spec if any(row.name == short for row in rows) else short
        rows.append(Candidate(name, model, weights.metrics if weights else {}, weights.ssim if weights else {}))
    return rows, scale


def _load(spec: str) -> tuple[nn.Module, Weights | None]:
    if spec.endswith(WEIGHT_SUFFIXES):
        model = load_checkpoint(spec)
        digest = sha256(spec)
        published = (model_info(name).weights for name in list_models(pretrained=True))
        return model, next((weights for weights in published if weights.sha256 == digest), None)
    if spec.startswith(("hf-hub:", "local-dir:")):
        return create_model(spec, pretrained=True), None
    if ":" in spec:
        return _call(spec), None
    if os.path.isdir(spec):
        return create_model(f"local-dir:{spec}", pretrained=True), None
    return create_model(spec, pretrained=True), model_info(spec).weights


def _call(spec: str) -> nn.Module:
    """The network that 'module:function' returns; the module may lie in the current folder."""
    module_name, _, function_name = spec.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise HatlibError(f"{spec!r} can't be imported: {error}.") from error
    except AttributeError as error:
        raise HatlibError(f"The module {module_name!r} has no function {function_name!r}.") from error
    model = function()
    if not isinstance(model, nn.Module):
        raise HatlibError(f"{spec!r} gives a {type(model).__name__} and not a network (torch.nn.Module).")
    return model.eval()
