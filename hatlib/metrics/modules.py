"""The metrics as torchmetrics' `Metric`: means over a benchmark, the same to the last digit however it was divided."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from hatlib.errors import HatlibError
from hatlib.metrics.functional import exact_mean, lpips, psnr, ssim

__all__ = ["LPIPS", "PSNR", "SSIM", "sr_metrics"]


class _MeanOverImages(Metric):
    """Keeps a value per image, gathers all of them, and sums them exactly: no order and no split changes the mean."""

    full_state_update = False
    is_differentiable = False  # the functions are
    values: list[Tensor]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # also of the empty list of a process that got no image

    def _values(self, preds: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Shape: (B, C, H, W), (B, C, H, W)
        """
        self.values.append(self._values(preds, target))

    def compute(self) -> Tensor:
        """The mean over all images seen on all processes, float64.

        Raises:
            HatlibError: If there were none.
        """
        values = dim_zero_cat(self.values) if len(self.values) else torch.zeros(0)
        if values.numel() == 0:
            raise HatlibError(f"{type(self).__name__} has seen no images; call update first.")
        return torch.tensor(exact_mean(values.tolist()), dtype=torch.float64)


class PSNR(_MeanOverImages):
    """Mean of `hatlib.metrics.psnr` over images, in dB; takes its arguments.

    Args:
        border: Pixels left out at every border; the upscaling factor in super-resolution.
        y_channel: Compare RGB images on their luma.
        quantize: Clamp to [0, 1] and round to 8 bits first.
        **kwargs: Those of torchmetrics' `Metric`.
    """

    higher_is_better = True

    def __init__(self, border: int = 0, y_channel: bool = True, quantize: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.options = dict(border=border, y_channel=y_channel, quantize=quantize)

    def _values(self, preds: Tensor, target: Tensor) -> Tensor:
        return psnr(preds, target, **self.options)


class SSIM(PSNR):
    """Mean of `hatlib.metrics.ssim` over images; takes its arguments.

    Args:
        border: Pixels left out at every border; the upscaling factor in super-resolution.
        y_channel: Compare RGB images on their luma.
        quantize: Clamp to [0, 1] and round to 8 bits first.
        **kwargs: Those of torchmetrics' `Metric`.
    """

    def _values(self, preds: Tensor, target: Tensor) -> Tensor:
        return ssim(preds, target, **self.options)


class LPIPS(_MeanOverImages):
    """Mean of `hatlib.metrics.lpips` over images; takes its arguments. Lower is better.

    Args:
        net: 'alex' (what papers report), 'vgg' or 'squeeze'.
        border: Pixels left out at every border.
        quantize: Clamp to [0, 1] and round to 8 bits first.
        **kwargs: Those of torchmetrics' `Metric`.
    """

    higher_is_better = False

    def __init__(self, net: str = "alex", border: int = 0, quantize: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.options = dict(net=net, border=border, quantize=quantize)

    def _values(self, preds: Tensor, target: Tensor) -> Tensor:
        return lpips(preds, target, **self.options).double()


def sr_metrics(scale: int, extra: Sequence[Metric] = ()) -> MetricCollection:
    """PSNR and SSIM by the papers' protocol: on the luma, of 8-bit images, without `scale` pixels at every border.

    Args:
        scale: Upscaling factor; 1 leaves no border out.
        extra: More metrics, named by their class in small letters, for example `LPIPS()`.

    Returns:
        A `MetricCollection` of 'psnr', 'ssim' and the others.
    """
    border = scale if scale > 1 else 0
    metrics = {"psnr": PSNR(border), "ssim": SSIM(border), **{type(m).__name__.lower(): m for m in extra}}
    # Not merged by states that happen to be equal in the first update, as with one black image.
    return MetricCollection(metrics, compute_groups=False)
