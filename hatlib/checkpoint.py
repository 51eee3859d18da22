"""Weight files: read without running code, unwrapped, verified."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hatlib.errors import HatlibError

__all__ = ["load_weights", "read_state_dict", "sha256", "unwrap_state_dict"]

# Where training codes keep the weights, the averaged ones first.
WRAPPERS = ("params_ema", "params", "state_dict", "model")
# What data-parallel and compiled modules put before every name.
PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a .safetensors file or a PyTorch checkpoint (.pth, .pt, .ckpt, .bin), on the CPU.

    Averaged weights (`params_ema`) are preferred to `params`; prefixes of DataParallel and torch.compile go.

    Raises:
        HatlibError: if there is no such file, it is no weight file, it is damaged, or it wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise HatlibError(f"There is no weight file {str(path)!r}.")
    try:
        if path.suffix == ".safetensors":
            return unwrap_state_dict(load_file(path))
        return unwrap_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except HatlibError as error:
        raise HatlibError(f"{str(path)!r}: {error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "weights_only" in str(error):
            raise HatlibError(
                f"{str(path)!r} holds Python objects beside tensors, which could run code, so hatlib does not open it; "
                "ask for the bare weights, best as .safetensors."
            ) from error
        raise _damaged(path) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _damaged(path) from error


def unwrap_state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict within a training checkpoint, without prefixes. Leaves a bare state dict as it is.

    Raises:
        HatlibError: if there are no weights in it.
    """
    for wrapper in WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    if not isinstance(checkpoint, Mapping) or not all(isinstance(v, Tensor) for v in checkpoint.values()):
        raise HatlibError("there is no state dict in it, neither bare nor under " + ", ".join(WRAPPERS) + ".")
    if not checkpoint:
        raise HatlibError("it holds no weights.")
    state_dict = dict(checkpoint)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return state_dict


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a weight file into a model that has exactly these parameters, published key layouts included.

    Raises:
        HatlibError: if the file can't be read or does not fit; the model is left as it was.
    """
    state_dict = read_state_dict(path)
    if hasattr(model, "convert_state_dict"):
        state_dict = model.convert_state_dict(state_dict)
    own = model.state_dict()
    problems = [
        _listed("missing", [name for name in own if name not in state_dict]),
        _listed("not known", [name for name in state_dict if name not in own]),
        _listed("of another shape", [n for n, v in state_dict.items() if n in own and own[n].shape != v.shape]),
    ]
    if any(problems):
        told = "; ".join(filter(None, problems))
        raise HatlibError(f"{str(path)!r} does not fit {type(model).__name__} as it was configured: {told}.")
    model.load_state_dict(state_dict)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path) -> HatlibError:
    return HatlibError(f"{str(path)!r} is not a weight file, or it is damaged; download it again.")


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} keys {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
