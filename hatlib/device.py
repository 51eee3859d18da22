"""Choice of the device that a model runs on."""

import os

import torch

from hatlib.errors import HatlibError, first_line

__all__ = ["default_device", "resolve_device"]


def default_device() -> torch.device:
    """Returns a GPU if there is one (with several processes, each takes its own), else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """Returns the named device after checking that it works, or `default_device()` for None.

    Raises:
        HatlibError: if the device does not exist or cannot be used.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise HatlibError(f"Cannot use the device '{name}': {first_line(error)}.") from error
    return device
