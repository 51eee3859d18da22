"""Running models over benchmarks: every image measured by itself, every failure told, no mean over what is missing."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hatlib.data import ImagePairs
from hatlib.device import resolve_device
from hatlib.errors import HatlibError, describe_error
from hatlib.evaluation.candidates import Candidate, bicubic
from hatlib.imageio import Image, write_image
from hatlib.inference import Upscaler, ensemble
from hatlib.inference.memory import is_out_of_memory
from hatlib.metrics import exact_mean, sr_metrics

__all__ = ["Evaluation", "ImageResult", "Summary", "evaluate"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageResult:
    """What one model makes of one image; `error` says why there is nothing, in place of the figures."""

    data: str
    image: str
    model: str
    psnr: float = math.nan
    ssim: float = math.nan
    seconds: float = math.nan
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """Means of a model over a data set; None if any of its images failed. Published values where there are some."""

    data: str
    model: str
    images: int
    failed: int
    psnr: float | None
    ssim: float | None
    seconds: float | None
    published_psnr: float | None
    published_ssim: float | None


@dataclass(frozen=True)
class Evaluation:
    """The outcome: a result for each image and model, in the order of the data sets, images and models.

    Attributes:
        scale: the upscaling factor.
        results: one per image and model.
        summaries: one per data set and model.
        device: where the models ran.
        self_ensemble: whether results are means over eight orientations.
        tile: largest tile, None for whole images.
    """

    scale: int
    results: list[ImageResult]
    summaries: list[Summary]
    device: str
    self_ensemble: bool
    tile: int | None

    @property
    def failures(self) -> list[ImageResult]:
        """The results that there are none of."""
        return [result for result in self.results if result.error is not None]


def evaluate(
    rows: Sequence[Candidate],
    data: Mapping[str, ImagePairs],
    *,
    device: str | torch.device | None = None,
    tile: int | None = None,
    self_ensemble: bool = False,
    save_images: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures models on data sets by the protocol of the papers (`hatlib.metrics.sr_metrics`).

    Started on several processes (torchrun, accelerate launch), each takes its share of the images; all get the whole
    outcome, which is the same to the last digit as that of one process.

    Args:
        rows: what to compare.
        data: the data sets by name, all of one scale.
        device: where to run; None takes a GPU if there is one, each process its own.
        tile: largest tile in LR pixels, None for whole images.
        self_ensemble: average each model over the eight orientations of its input.
        save_images: folder for the results, as MODEL/DATA/NAME_xS.png.
        progress: called as progress(done, total) after each image, for the share of this process.

    Raises:
        HatlibError: If the scales of the data sets differ, or a folder can't be made. What fails for one image is in
            the results instead.
    """
    scales = {pairs.scale for pairs in data.values()}
    if len(scales) != 1:
        raise HatlibError(f"Data sets of one scale are evaluated together, not of {sorted(scales)}.")
    scale = scales.pop()
    rank, world, place = _processes(device)
    runs = {row.name: _runner(row, scale, place, tile, self_ensemble) for row in rows}
    jobs = [(name, i) for name, pairs in data.items() for i in range(len(pairs))]
    own = range(rank, len(jobs), world)
    metrics = sr_metrics(scale)
    results: dict[int, list[ImageResult]] = {}
    for done, number in enumerate(own, 1):
        name, index = jobs[number]
        results[number] = _measure(data[name], name, index, runs, metrics, save_images)
        if progress is not None:
            progress(done, len(own))
    if world > 1:
        from accelerate.utils import gather_object

        results = dict(gather_object(list(results.items())))
    ordered = [result for number in range(len(jobs)) for result in results[number]]
    summaries = [_summary(name, row, ordered) for name in data for row in rows]
    return Evaluation(scale, ordered, summaries, str(place), self_ensemble, tile)


def restore(
    row: Candidate, scale: int, device: torch.device, tile: int | None = None, self_ensemble: bool = False
) -> Callable[[Tensor], Tensor]:
    """What a row does to a uint8 image (3, H, W): gives (3, scale * H, scale * W), uint8."""
    run = _runner(row, scale, device, tile, self_ensemble)
    return lambda lr: _quantized(run(lr[None]))[0]


def _processes(device: str | torch.device | None) -> tuple[int, int, torch.device]:
    """Number of this process, of all, and where this one runs."""
    place = resolve_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return 0, 1, place
    from accelerate import PartialState

    state = PartialState(cpu=place.type == "cpu")
    return state.process_index, state.num_processes, state.device if device is None else place


def _runner(
    row: Candidate, scale: int, device: torch.device, tile: int | None, self_ensemble: bool
) -> Callable[[Tensor], Tensor]:
    """uint8 (1, 3, H, W) -> the result, uint8 or float in [0, 1], on the CPU."""
    if row.model is None:
        return lambda lr: bicubic(lr, scale)
    upscaler = Upscaler(row.model, tile=tile, device=device)
    try:
        upscaler(torch.zeros(1, upscaler.in_chans, 16, 16))  # the first call of a process is slower than others
    except HatlibError:
        raise
    except Exception:  # a foreign network need not take this size; what it says of the images is told with them
        pass

    @torch.inference_mode()
    def run(lr: Tensor) -> Tensor:
        x = lr.to(torch.float32) / 255
        return ensemble.self_ensemble(upscaler, x) if self_ensemble else upscaler(x)

    return run


def _measure(
    pairs: ImagePairs,
    data: str,
    index: int,
    runs: Mapping[str, Callable[[Tensor], Tensor]],
    metrics: Callable[[Tensor, Tensor], dict[str, Tensor]],
    save_images: str | os.PathLike | None,
) -> list[ImageResult]:
    image = pairs.name(index)
    try:
        _, lr, hr = pairs[index]
    except HatlibError as error:
        return [ImageResult(data, image, model, error=str(error)) for model in runs]
    results = []
    for model, run in runs.items():
        try:
            start = time.perf_counter()
            sr = run(lr[None])
            seconds = time.perf_counter() - start
            if not sr.isfinite().all():
                raise HatlibError(f"{model} gives values that are not finite for '{image}' of {data}.")
            values = metrics(sr, hr[None])
            if save_images is not None:
                _save(Path(save_images), model, data, f"{image}_x{pairs.scale}.png", sr)
            results.append(ImageResult(data, image, model, *(values[m].item() for m in ("psnr", "ssim")), seconds))
        except HatlibError as error:
            results.append(ImageResult(data, image, model, error=str(error)))
        except Exception as error:  # a foreign network may raise anything; the other images are measured nevertheless
            if is_out_of_memory(error):
                reason = f"Not enough memory for '{image}' of {data}: choose a smaller --tile."
            else:
                reason = f"{model} fails on '{image}' of {data}: {describe_error(error)}."
            results.append(ImageResult(data, image, model, error=reason))
    return results


def _summary(data: str, row: Candidate, results: Sequence[ImageResult]) -> Summary:
    own = [r for r in results if r.data == data and r.model == row.name]
    failed = sum(r.error is not None for r in own)

    def mean(of: str) -> float | None:
        return None if failed else exact_mean(getattr(r, of) for r in own)

    published = [
        {key.lower(): value for key, value in table.items()}.get(data.lower()) for table in (row.psnr, row.ssim)
    ]
    return Summary(data, row.name, len(own), failed, mean("psnr"), mean("ssim"), mean("seconds"), *published)


def _quantized(sr: Tensor) -> Tensor:
    """As a saved image: uint8."""
    return sr if sr.dtype == torch.uint8 else sr.clamp(0, 1).mul(255).round().byte()


def _save(folder: Path, model: str, data: str, file: str, sr: Tensor) -> None:
    path = folder / re.sub(r"[^\w.+-]+", "_", model) / re.sub(r"[^\w.+-]+", "_", data) / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HatlibError(f"Cannot make the folder '{path.parent}': {error.strerror}.") from error
    write_image(path, Image(_quantized(sr)[0].permute(1, 2, 0).contiguous().numpy()))
