"""Local attribution maps: which pixels of the input a network uses to restore a small window of its output.

Gu & Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps", CVPR 2021 (arXiv 2011.11036). The
gradients of a detector of edges in the window are integrated along a path of ever less blurred inputs.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.analysis._input import network_input
from hatlib.analysis.diffusion import diffusion_index, gini
from hatlib.errors import HatlibError
from hatlib.inference.memory import is_out_of_memory
from hatlib.inference.upscaler import eval_mode
from hatlib.models import RestorationModel

__all__ = ["Attribution", "Window", "blur_path", "center_window", "edge_strength", "lam"]

Window = tuple[int, int, int]
"""Left, top and side of a square, in pixels of the output."""

RULES = ("reference", "trapezoid")


@dataclass(frozen=True)
class Attribution:
    """What `lam` finds out. Everything lies on the CPU.

    Attributes:
        map: |sum of the attribution over channels| over its maximum.
        attribution: the integrated gradients, with their sign.
        gini: Gini coefficient of the map.
        di: diffusion index of the map, 0 to 100: the larger, the more pixels are used.
        completeness: distance between the sum of the attribution and `difference`, relative to `difference`. How
            exactly the path was integrated: 0 is exact.
        difference: by how much the detector answers more strongly to the image than to the blurred image.
        image: the input.
        sr: the network's output for it, not clamped.
        window: left, top and side of the window, in output pixels.
        scale: output size over input size.
        gradients: how many gradients were computed.

    Shape:
        map: (h, w), float64. attribution: (C, h, w), float64. image: (C, h, w). sr: (C', s * h, s * w)
    """

    map: Tensor
    attribution: Tensor
    gini: float
    di: float
    completeness: float
    difference: float
    image: Tensor
    sr: Tensor
    window: Window
    scale: int
    gradients: int


def lam(
    model: nn.Module,
    image: Tensor,
    window: Window | None = None,
    *,
    scale: int | None = None,
    sigma: float = 1.2,
    fold: int = 50,
    kernel_size: int = 9,
    rule: Literal["reference", "trapezoid"] = "reference",
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Local attribution map of a network, for one image and one window of the output (section 3).

    The network runs in eval mode on its own device and in its own type; only the gradient with respect to the input
    is computed (through `forward_window`, where the network is one of ours), and the network is left as it was found:
    modes, `requires_grad`, gradients, hooks. Any network will do that maps (B, C, h, w) to (B, C', s * h, s * w).

    Args:
        model: the network.
        image: its input, floating point in [0, 1] or uint8.
        window: left, top and side of the window, in pixels of the output; by default 16x16 in the middle.
        scale: the scale that the network is expected to have, if that shall be checked.
        sigma: standard deviation of the blur at the start of the path, in input pixels.
        fold: steps of the path.
        kernel_size: side of the blur's kernel, an odd number.
        rule: 'reference' takes each step's gradient at its end, as the paper's authors do and their figures have it;
            'trapezoid' the mean of both ends, which is several times nearer to the exact integral.
        batch: steps that go through the network at once; by default 1 on a CPU and 10 elsewhere.
        progress: called as progress(done, total) after each batch of steps.

    Shape:
        image: (C, h, w) or (1, C, h, w)

    Raises:
        HatlibError: if the window lies outside the output, the image is smaller than the kernel, the network is no
            such network or has another scale, its gradients are not finite or zero, memory runs out, or an argument
            makes no sense.
    """
    check_options(sigma, fold, kernel_size, rule, batch)
    with torch.inference_mode(False), frozen(model):
        image = network_input(image, model, "lam")
        height, width = image.shape[1:]
        if min(height, width) < kernel_size:
            raise HatlibError(
                f"The image has {width}x{height} pixels, fewer than the blur's kernel of {kernel_size}x{kernel_size}: "
                "take a larger image, or a smaller kernel_size."
            )
        ends = torch.cat([blur_path(image, [sigma], kernel_size), image[None]])
        results = _ends(model, ends)
        found = _scale(ends, results, scale)
        height, width = results.shape[2:]
        window = center_window(height, width) if window is None else checked_window(window, height, width, "the output")
        start, end = edge_strength(results.cpu().double(), window).tolist()  # not every device has float64
        sigmas = torch.linspace(sigma, 0, fold + 1, dtype=torch.float64).tolist()
        points, weights = integration(blur_path(image, sigmas, kernel_size), rule)
        step = batch or (1 if image.device.type == "cpu" else 10)
        total = torch.zeros(image.shape, dtype=torch.float64)
        for i in range(0, len(points), step):
            part = slice(i, i + step)
            total += (input_gradient(model, points[part], window).cpu().double() * weights[part]).sum(0)
            if progress is not None:
                progress(min(i + step, len(points)), len(points))
        if not total.isfinite().all():
            raise HatlibError(f"The gradients of {type(model).__name__} with respect to its input are not finite.")
        magnitude = total.sum(0).abs()
        if magnitude.max() == 0:
            raise HatlibError(
                f"No pixel of the input changes the edges in the window {window} of the output: choose another window."
            )
        normalized = magnitude / magnitude.max()
        difference = end - start
        error = abs(total.sum().item() - difference)
        return Attribution(
            map=normalized,
            attribution=total,
            gini=gini(normalized),
            di=diffusion_index(normalized),
            completeness=error / abs(difference) if difference else float("inf" if error else 0),
            difference=difference,
            image=image.cpu(),
            sr=results[1].cpu(),
            window=window,
            scale=found,
            gradients=len(points),
        )


def edge_strength(x: Tensor, window: Window) -> Tensor:
    """The detector: gradient magnitude of each channel, sqrt(dh ** 2 + dw ** 2), summed over a window and channels.

    Differences are those to the next pixel, and zero beyond the image. Its gradient at a flat spot is zero.

    Shape: (B, C, H, W) -> (B,)
    """
    left, top, side = window
    # Cropped before the root: flat spots elsewhere are none of its business.
    x = x[:, :, top : top + side + 1, left : left + side + 1]
    x = F.pad(x, (0, side + 1 - x.shape[3], 0, side + 1 - x.shape[2]), mode="replicate")
    corner = x[:, :, :-1, :-1]
    differences = torch.stack((x[:, :, 1:, :-1] - corner, x[:, :, :-1, 1:] - corner))
    return torch.linalg.vector_norm(differences, dim=0).sum((1, 2, 3))  # a root with zero gradient at zero


def blur_path(image: Tensor, sigmas: list[float], kernel_size: int) -> Tensor:
    """The image blurred by Gaussians of several standard deviations; 0 leaves it as it is. The border is mirrored.

    Weights of the kernel that are lost in the rounding of the pixels are left out, so that a Gaussian much narrower
    than a pixel leaves the image exactly as it is.

    Shape: (C, h, w) -> (len(sigmas), C, h, w), of the type and on the device of the image
    """
    radius = kernel_size // 2
    # In float64, and on the CPU, because not every device has that.
    x = image.cpu().double()
    rows = F.pad(x[None], (radius,) * 4, mode="reflect")[0]
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    resolution = torch.finfo(torch.float64 if image.dtype == torch.float64 else torch.float32).eps / 2
    blurred = []
    for sigma in sigmas:
        if sigma == 0:
            blurred.append(x)
            continue
        # A Gaussian on a grid is the product of one along the rows and one along the columns.
        kernel = torch.exp(-distance.square() / (2 * sigma**2))
        kernel[kernel < resolution] = 0
        kernel /= kernel.sum()
        vertical = F.conv2d(rows[:, None], kernel.view(1, 1, -1, 1))
        blurred.append(F.conv2d(vertical, kernel.view(1, 1, 1, -1))[:, 0])
    return torch.stack(blurred).to(image)


def integration(path: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Where the gradient is to be taken, and what it is multiplied by, so that the sum is the integral on the path.

    Points whose factor is exactly zero are left out: in the last steps the image does not change any more.

    Shape: (n + 1, C, h, w) -> (m, C, h, w), (m, C, h, w); the factors in float64 on the CPU
    """
    exact = path.cpu().double()
    backward = torch.diff(exact, dim=0, prepend=exact[:1])
    if rule == "reference":
        weights = backward
    else:
        weights = (backward + torch.diff(exact, dim=0, append=exact[-1:])) / 2
    used = weights.flatten(1).any(1)
    return path[used.to(path.device)], weights[used]


def input_gradient(model: nn.Module, x: Tensor, window: Window) -> Tensor:
    """Gradient of the detector's answer with respect to the input of the network.

    Shape: (B, C, h, w) -> (B, C, h, w)
    """
    with torch.enable_grad(), _memory_explained():
        x = x.clone().requires_grad_()
        # A copy goes in, because some networks scale their input in place.
        strength = _strength(model, x.clone(), window).sum()
        if not strength.requires_grad:
            raise HatlibError(f"{type(model).__name__} cuts the gradient off: its output does not depend on its input.")
        # Not by `torch.autograd.grad`, which refuses a network with (reentrant) gradient checkpointing.
        strength.backward()
    return torch.zeros_like(x) if x.grad is None else x.grad


def _strength(model: nn.Module, x: Tensor, window: Window) -> Tensor:
    """The detector's answer to the output, of which our own networks need not make more than the window."""
    if not _is_ours(model):
        return edge_strength(_called(model, x), window)
    left, top, side = window
    height, width = (length * model.upscale for length in x.shape[2:])
    # One pixel more than the window, for the differences, where there is one.
    part = model.forward_window(x, left, top, min(side + 1, width - left), min(side + 1, height - top))
    return edge_strength(part, (0, 0, side))


def _is_ours(model: nn.Module) -> bool:
    """Whether the network does what our networks do, with nothing overridden or hooked on."""
    hooks = model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks
    own = all(
        getattr(getattr(model, name, None), "__func__", None) is getattr(RestorationModel, name)
        for name in ("forward", "reconstruct", "forward_window")
    )
    return own and not any(hooks)


def center_window(height: int, width: int, side: int = 16) -> Window:
    """The window in the middle of an output of this size, smaller if the output is."""
    side = min(side, height, width)
    return (width - side) // 2, (height - side) // 2, side


def checked_window(window: Window, height: int, width: int, whose: str) -> Window:
    """The window, if it lies within `whose` image of this size, as Python's numbers; HatlibError otherwise."""
    try:
        left, top, side = (operator.index(value) for value in window)
    except (TypeError, ValueError) as error:
        raise HatlibError(f"A window is three whole numbers (x, y, size), not {window!r}.") from error
    if side < 1 or min(left, top) < 0 or left + side > width or top + side > height:
        raise HatlibError(
            f"The window {left},{top},{side} (x, y, size) in output pixels does not lie within {whose}, which has "
            f"{width}x{height} pixels."
        )
    return left, top, side


def check_options(sigma: float, fold: int, kernel_size: int, rule: str, batch: int | None) -> None:
    """Refuses, by HatlibError, options of `lam` that make no sense for any image and network."""
    if not 0 < sigma < float("inf"):
        raise HatlibError(f"sigma={sigma} must be a number above 0.")
    if fold < 1 or (batch is not None and batch < 1):
        raise HatlibError(f"fold={fold} and batch={batch} must be 1 or more.")
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise HatlibError(f"kernel_size={kernel_size} must be an odd number, 3 or more.")
    if rule not in RULES:
        raise HatlibError(f"rule={rule!r} is not known; it is 'reference' or 'trapezoid'.")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and parameters without gradients, within the block."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with eval_mode(model):
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


@torch.no_grad()
def _ends(model: nn.Module, ends: Tensor) -> Tensor:
    """What the network makes of both ends of the path, one after the other."""
    with _memory_explained():
        return torch.cat([_called(model, x[None].clone()) for x in ends])


def _called(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    if not isinstance(out, Tensor) or out.ndim != 4 or not out.is_floating_point():
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise HatlibError(f"{type(model).__name__} gives {what} for an image, and not an image (B, C, H, W).")
    return out


def _scale(x: Tensor, out: Tensor, said: int | None) -> int:
    (height, width), (out_height, out_width) = x.shape[2:], out.shape[2:]
    scale = out_height // height
    if scale < 1 or (out_height, out_width) != (scale * height, scale * width):
        raise HatlibError(
            f"The network makes {out_width}x{out_height} of {width}x{height} pixels, which is no whole multiple."
        )
    if said is not None and said != scale:
        raise HatlibError(f"The network enlarges by {scale}, and not by {said} as was said.")
    return scale


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise HatlibError(
                "Not enough memory for the attribution: take a smaller image, or a smaller batch of steps."
            ) from error
        raise
