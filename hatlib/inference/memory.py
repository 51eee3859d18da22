"""How much memory there is, and how large a tile fits into it."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import torch
from torch import nn

from hatlib.blocks.strips import HALO_STRIP_BYTES
from hatlib.models import RestorationModel

# Rough bytes of a float32 forward pass per input pixel and channel of the widest convolution, for networks that are not
# a RestorationModel.
_BYTES_PER_CHANNEL = 512
_SHARE = 0.5  # of the free memory: others want some too, and the estimate is rough


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; for the CPU that of the machine or of the control group, whichever is less."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available, group = psutil.virtual_memory().available, _control_group()
    return available if group is None else min(available, group)


def estimate_memory(model: RestorationModel, height: int, width: int, batch: int = 1) -> int:
    """Estimates the peak memory of a forward pass in eager inference, in bytes, without the model's own.

    To within 25 % from about 128x128 pixels on a CPU; the allocator of a GPU wastes less.

    Args:
        model: the network.
        height: rows of the input image.
        width: columns of the input image.
        batch: images at once.
    """
    itemsize = model.conv_first.weight.itemsize
    pixels = batch * math.prod(-(-side // model.multiple) * model.multiple for side in (height, width))
    feature_map = pixels * model.num_features * itemsize
    large = pixels * model.head.width * itemsize  # the largest temporary of the head
    if model.head.halo is not None:
        large /= math.ceil(large / HALO_STRIP_BYTES)
    image = pixels * model.out_chans * model.upscale**2 * itemsize
    trunk = model.trunk_maps * feature_map * _waste(feature_map)
    head = model.head_maps * large * _waste(large) + (2 * feature_map + image) * _waste(feature_map)
    return round(max(trunk, head))


def _waste(size: float) -> float:
    """Factor on tensors of `size` bytes: the C library's allocator maps those from 32 MiB on one by one."""
    return 1.0 if size >= 32 * 2**20 else 1.25


def bytes_per_pixel(model: nn.Module) -> int:
    """Estimated peak of memory per input pixel of a float32 forward pass without gradients, in bytes."""
    result = 4 * 4 * 3 * model.upscale**2  # in a few copies
    if isinstance(model, RestorationModel):
        return estimate_memory(model, 512, 512) // 512**2 + result
    width = max((p.shape[0] for p in model.parameters() if p.ndim == 4), default=64)  # 64 for an ONNX model, unseen
    return _BYTES_PER_CHANNEL * width + result


def auto_tile(model: nn.Module, height: int, width: int, multiple: int, device: torch.device) -> int | None:
    """The largest tile that should fit into the free memory, a multiple of the window; None if the whole image does."""
    pixels = int(_SHARE * free_bytes(device)) // bytes_per_pixel(model)
    if height * width <= pixels:
        return None
    least = -(-64 // multiple) * multiple
    return max(math.isqrt(pixels) // multiple * multiple, least)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was short: torch has a class for that on a GPU, and words on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _control_group() -> int | None:
    """Bytes that the process's control group (a container's limit) leaves free; psutil does not know of it."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
