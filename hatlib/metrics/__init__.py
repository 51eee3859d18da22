"""Image quality by the protocol of the super-resolution papers."""

from hatlib.metrics.functional import psnr, rgb_to_y, ssim

__all__ = ["psnr", "rgb_to_y", "ssim"]
