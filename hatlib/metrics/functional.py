"""PSNR and SSIM as the super-resolution literature measures them.

The protocol of the papers: the output is clamped and rounded to 8 bits, `scale` pixels are left out at every border,
and both images are compared on the luma of BT.601, which is not rounded. Each of these is worth 0.001 to 1.6 dB.
"""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from hatlib.errors import HatlibError

__all__ = ["exact_mean", "lpips", "psnr", "rgb_to_y", "ssim"]


def exact_mean(values: Iterable[float]) -> float:
    """The mean, from a sum without rounding errors: the order of the values does not matter.

    Raises:
        HatlibError: If there are no values.
    """
    values = list(values)
    if not values:
        raise HatlibError("There are no values to take the mean of.")
    return math.fsum(values) / len(values)


def rgb_to_y(x: Tensor) -> Tensor:
    """BT.601 luma of RGB images in [0, 1], in 8-bit units (16 to 235), float64 and not rounded.

    Shape: (B, 3, H, W) -> (B, 1, H, W)
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=x.device)
    return (x.double() * weights.view(3, 1, 1)).sum(-3, keepdim=True) + 16


def psnr(preds: Tensor, target: Tensor, *, border: int = 0, y_channel: bool = True, quantize: bool = True) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB; infinite where the images are equal.

    Args:
        preds: Restored images, floating point in [0, 1] or uint8.
        target: The originals, likewise.
        border: Pixels left out at every border; the upscaling factor in super-resolution.
        y_channel: Compare RGB images on their luma. Images of one channel are compared as they are.
        quantize: Clamp to [0, 1] and round to 8 bits first, as a saved image would be.

    Returns:
        One value per image, float64. Average these to get the figure of a benchmark.

    Shape: (B, C, H, W), (B, C, H, W) -> (B,)

    Raises:
        HatlibError: If the shapes differ or are not (B, C, H, W), or nothing is left inside the border.
    """
    preds, target = _prepare(preds, target, border, y_channel, quantize)
    mse = (preds - target).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / mse)


def ssim(preds: Tensor, target: Tensor, *, border: int = 0, y_channel: bool = True, quantize: bool = True) -> Tensor:
    """Structural similarity of each image (Wang et al., IEEE TIP 13(4), 2004), averaged over its channels.

    An 11x11 Gaussian window of sigma 1.5, where it lies inside the image, with the constants for 8-bit images.

    Args:
        preds: Restored images, floating point in [0, 1] or uint8.
        target: The originals, likewise.
        border: Pixels left out at every border; the upscaling factor in super-resolution.
        y_channel: Compare RGB images on their luma. Images of one channel are compared as they are.
        quantize: Clamp to [0, 1] and round to 8 bits first, as a saved image would be.

    Returns:
        One value per image, float64.

    Shape: (B, C, H, W), (B, C, H, W) -> (B,)

    Raises:
        HatlibError: If the shapes differ or are not (B, C, H, W), or less than 11x11 pixels are left inside the border.
    """
    preds, target = _prepare(preds, target, border, y_channel, quantize)
    if min(preds.shape[-2:]) < 11:
        h, w = preds.shape[-2:]
        raise HatlibError(f"SSIM needs at least 11x11 pixels inside the border, not {h}x{w}.")
    batch, channels = preds.shape[:2]
    window = torch.exp(-((torch.arange(11, dtype=torch.float64, device=preds.device) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    planes = torch.stack([preds, target, preds * preds, target * target, preds * target]).flatten(0, 2).unsqueeze(1)
    planes = conv2d(conv2d(planes, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
    mean_p, mean_t, square_p, square_t, product = planes.unflatten(0, (5, batch, channels)).squeeze(3)
    var_p, var_t, covariance = square_p - mean_p**2, square_t - mean_t**2, product - mean_p * mean_t
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2))
    return similarity.mean((1, 2, 3))


def lpips(preds: Tensor, target: Tensor, *, net: str = "alex", border: int = 0, quantize: bool = True) -> Tensor:
    """Perceptual distance of each image in RGB (Zhang et al., CVPR 2018, arXiv 1801.03924); lower is better.

    Through torchmetrics, which carries the weights of the distance; torchvision downloads those of the network at
    first use.

    Args:
        preds: Restored images, floating point in [0, 1] or uint8.
        target: The originals, likewise.
        net: 'alex' (what papers report), 'vgg' or 'squeeze'.
        border: Pixels left out at every border.
        quantize: Clamp to [0, 1] and round to 8 bits first.

    Returns:
        One value per image, float32.

    Shape: (B, 3, H, W), (B, 3, H, W) -> (B,)

    Raises:
        HatlibError: If the shapes differ or are not (B, 3, H, W), less than 32x32 pixels are left, or the network can't
            be downloaded.
    """
    preds, target = _prepare(preds, target, border, False, quantize)
    if preds.shape[1] != 3 or min(preds.shape[-2:]) < 32:
        raise HatlibError(f"LPIPS takes RGB images of at least 32x32 pixels, not {tuple(preds.shape[1:])}.")
    network = _lpips_network(net).to(preds.device)
    # normalize: from [0, 1] to the [-1, 1] of the published network
    return network(preds.float() / 255, target.float() / 255, normalize=True).flatten()


@functools.lru_cache(maxsize=3)
def _lpips_network(net: str) -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    if net not in ("alex", "vgg", "squeeze"):
        raise HatlibError(f"LPIPS has the networks 'alex', 'vgg' and 'squeeze', not {net!r}.")
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=net).net.eval()
    except OSError as error:  # URLError among them
        raise HatlibError(
            f"LPIPS needs torchvision's weights of {net!r}, which can't be downloaded ({error}); where there is no "
            f"internet, put the file into '{torch.hub.get_dir()}/checkpoints'."
        ) from error


def _prepare(preds: Tensor, target: Tensor, border: int, y_channel: bool, quantize: bool) -> tuple[Tensor, Tensor]:
    """Both images cropped and in 8-bit units, float64."""
    if preds.shape != target.shape or preds.ndim != 4:
        raise HatlibError(
            f"Metrics compare two batches (B, C, H, W) of equal shape, not {tuple(preds.shape)} with "
            f"{tuple(target.shape)}; crop the original to a multiple of the scale."
        )
    h, w = preds.shape[-2:]
    if border < 0 or min(h, w) <= 2 * border:
        raise HatlibError(f"A border of {border} pixels leaves nothing of an image of {h}x{w} pixels.")
    images = []
    for x in (preds, target):
        x = x[..., border : h - border, border : w - border]
        if x.device.type == "mps":  # which has no float64
            x = x.cpu()
        x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
        if quantize:
            x = x.clamp(0, 1).mul(255).round() / 255
        images.append(rgb_to_y(x) if y_channel and x.shape[1] == 3 else x * 255)
    return images[0], images[1]
