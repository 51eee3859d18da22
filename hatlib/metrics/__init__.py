"""Image quality by the protocol of the super-resolution papers.

Each metric is a function, which gives a value per image, and a class, a torchmetrics `Metric` that gives the mean over
a benchmark on any number of processes. torchmetrics takes seconds to import, so the classes load at first use.
"""

from typing import TYPE_CHECKING, Any

from hatlib.metrics.functional import exact_mean, lpips, psnr, rgb_to_y, ssim

if TYPE_CHECKING:
    from hatlib.metrics.modules import LPIPS, PSNR, SSIM, sr_metrics

__all__ = ["LPIPS", "PSNR", "SSIM", "exact_mean", "lpips", "psnr", "rgb_to_y", "sr_metrics", "ssim"]


def __getattr__(name: str) -> Any:
    if name not in ("LPIPS", "PSNR", "SSIM", "sr_metrics"):
        raise AttributeError(f"module 'hatlib.metrics' has no attribute {name!r}")
    from hatlib.metrics import modules

    return getattr(modules, name)
