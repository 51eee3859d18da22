"""How much memory there is, and how large a tile fits into it."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import torch
from torch import nn

from hatlib.models import RestorationModel

# Bytes of a float32 forward pass per input pixel and channel of the widest convolution, for networks that do not
# foretell it: they hold whole maps, some of attention. A guess.
_WHOLE_MAPS = 512
_SHARE = 0.5  # of the free memory: others want some too, and the estimate is rough


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; for the CPU that of the machine or of the control group, whichever is less."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available, group = psutil.virtual_memory().available, _control_group()
    return available if group is None else min(available, group)


def bytes_per_pixel(model: nn.Module) -> int:
    """Estimated peak of memory per input pixel of a float32 forward pass without gradients, in bytes."""
    result = 4 * 4 * 3 * model.upscale**2  # in a few copies
    if isinstance(model, RestorationModel):
        return model.peak_memory(512, 512) // 512**2 + result
    width = max((p.shape[0] for p in model.parameters() if p.ndim == 4), default=64)  # 64 for an ONNX model, unseen
    return _WHOLE_MAPS * width + result


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
