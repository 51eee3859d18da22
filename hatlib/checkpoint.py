"""Weight files: read without running code, unwrapped, detected, verified, written.

A .safetensors file that hatlib writes carries the constructor arguments in its header; of any other file, the families
detect what its shapes tell.
"""

import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hatlib.atomic import atomic_path
from hatlib.detection import detect, find_arch
from hatlib.errors import HatlibError, first_line
from hatlib.networks import build_saved, known_hashes
from hatlib.registry import constructor_parameters, to_tuples

__all__ = [
    "LoadReport",
    "Provenance",
    "UnknownArchitectureError",
    "load_detected",
    "load_weights",
    "read_state_dict",
    "sha256",
    "unwrap_state_dict",
    "write_state_dict",
]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
# Where training codes keep the averaged weights, and the others.
EMA_WRAPPERS = ("params_ema", "params-ema")
WRAPPERS = ("params", "state_dict", "model_state_dict", "model")
# What data-parallel and compiled modules put before every name.
PREFIXES = ("module.", "_orig_mod.")
# Key of a .safetensors header under which hatlib keeps what the weights don't tell.
HEADER = "hatlib"

_logger = logging.getLogger(__name__)


class UnknownArchitectureError(HatlibError):
    """Weights that do not belong to any registered family."""


@dataclass(frozen=True)
class LoadReport:
    """What a load that was not strict did.

    Attributes:
        loaded: parameters that were loaded.
        missing: parameters of the model that the file does not have; they are as they were.
        unexpected: what the file has and the model does not.
        mismatched: what both have in different shapes; the model's are as they were.
        dtype: type of the file's weights.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def complete(self) -> bool:
        """Whether the file and the model have exactly the same parameters."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [
            _count_names("missing", self.missing),
            _count_names("not known", self.unexpected),
            _count_names("of another shape", self.mismatched),
        ]
        return "; ".join(filter(None, parts)) or f"all {len(self.loaded)} keys loaded"


@dataclass(frozen=True)
class Provenance:
    """Where the constructor arguments of a model that was loaded from a weight file come from.

    Attributes:
        recorded: arguments in the header of the file.
        detected: arguments that the names and shapes of the weights reveal.
        overridden: arguments that the caller passed.
        assumed: arguments that nothing reveals; the model has their published or default values.
    """

    recorded: Mapping[str, Any]
    detected: Mapping[str, Any]
    overridden: Mapping[str, Any]
    assumed: Mapping[str, Any]


def read_state_dict(path: str | Path, ema: bool | None = None) -> dict[str, Tensor]:
    """Reads the weights of a .safetensors file or a PyTorch checkpoint (.pth, .pt, .ckpt, .bin), on the CPU.

    Prefixes of DataParallel and torch.compile go.

    Args:
        path: the file.
        ema: whether to take the averaged weights (`params_ema`); if None, they are preferred to the others.

    Raises:
        HatlibError: if there is no such file, it can't be read, it is no weight file, it is damaged, or it wants to run
            code.
    """
    path = Path(path)
    if not path.is_file():
        raise HatlibError(f"There is no weight file {str(path)!r}.")
    try:
        if path.suffix == ".safetensors":
            return unwrap_state_dict(load_file(path), ema)
        return unwrap_state_dict(torch.load(path, map_location="cpu", weights_only=True), ema)
    except HatlibError as error:
        raise HatlibError(f"{str(path)!r}: {error}") from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the name of a class or function
            raise HatlibError(
                f"{str(path)!r} holds Python objects beside tensors, which could run code, so hatlib does not open it; "
                "ask for the bare weights, best as .safetensors."
            ) from error
        raise _damaged(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path) from error


def unwrap_state_dict(checkpoint: Any, ema: bool | None = None) -> dict[str, Tensor]:
    """The state dict within a training checkpoint, without prefixes. Leaves a bare state dict as it is.

    Raises:
        HatlibError: if there are no weights in it, or none of the kind that `ema` asks for.
    """
    wrappers = {None: EMA_WRAPPERS + WRAPPERS, True: EMA_WRAPPERS, False: WRAPPERS}[ema]
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    found = next((content[w] for w in wrappers if isinstance(content.get(w), Mapping)), None)
    if found is None and ema:
        raise HatlibError("there are no averaged weights (params_ema) in it; leave --ema (ema=True) out.")
    if found is None and ema is False and any(w in content for w in EMA_WRAPPERS):
        raise HatlibError("there are only averaged weights (params_ema) in it; leave --no-ema (ema=False) out.")
    weights = checkpoint if found is None else found
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        names = ", ".join(EMA_WRAPPERS + WRAPPERS)
        raise HatlibError(f"there is no state dict in it, neither bare nor under {names}.")
    if not weights:
        raise HatlibError("it holds no weights.")
    state_dict = dict(weights)
    # Wrappers nest in any order.
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state_dict)), ""):
        state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return state_dict


def write_state_dict(
    state_dict: Mapping[str, Tensor], path: str | Path, header: Mapping[str, Any] | None = None
) -> None:
    """Writes weights as .safetensors, or for another suffix as a PyTorch checkpoint under `params_ema`.

    The file appears under its name when it is whole.

    Args:
        state_dict: the weights.
        path: where to.
        header: what to keep in a .safetensors file beside the weights; JSON-safe.

    Raises:
        HatlibError: if it can't be written.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state_dict.items()}
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                # transformers requires the key "format".
                metadata = {"format": "pt", **({HEADER: json.dumps(header)} if header else {})}
                # Not save_file: it replaces the file by one that only its owner can read.
                temporary.write_bytes(save(tensors, metadata))
            else:
                with temporary.open("wb") as file:
                    torch.save({"params_ema": tensors}, file)
    except (RuntimeError, SafetensorError) as error:
        raise HatlibError(f"Cannot write '{path}': {first_line(error)}.") from error


def load_weights(
    model: nn.Module, path: str | Path, *, strict: bool = True, adapt: bool = False, skip: tuple[str, ...] = ()
) -> LoadReport:
    """Loads a weight file, published key layouts included, into a model that exists.

    The model keeps its own constructor arguments: where the file tells others that change the result, a warning says
    so.

    Args:
        model: takes the weights; they are converted to its type and device.
        path: the file.
        strict: refuse a file that has not exactly the model's parameters. Otherwise what fits is loaded (from x2 to
            x4, all but the upsampler), and what was skipped is logged and reported.
        adapt: fit the first and last convolution to the model's channel counts (`RestorationModel.adapt_state_dict`).
        skip: parameters to leave as they are and not to read, by the beginnings of their names.

    Raises:
        HatlibError: if the file can't be read or does not fit; the model is left as it was.
    """
    state_dict = read_state_dict(path)
    conflicts = conflicting_arguments(model, path, state_dict)
    own = format_arguments({name: model._arguments[name] for name in conflicts})
    mean = recorded_arguments(model, path, state_dict).get("mean")
    report = load_state_dict(model, state_dict, str(path), strict=strict, adapt=adapt, source_mean=mean, skip=skip)
    if conflicts:
        warnings.warn(
            f"{Path(path).name} is for a network with {format_arguments(conflicts)}, but the model has {own}; "
            "hatlib.load reads them from the file.",
            stacklevel=2,
        )
    return report


def recorded_arguments(model: nn.Module, path: str | Path, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that a weight file records in its header, or that its layout reveals."""
    inferred = model.infer_from_layout(state_dict) if hasattr(model, "infer_from_layout") else {}
    return {n: to_tuples(v) for n, v in {**inferred, **read_header(path).get("model_args", {})}.items()}


def conflicting_arguments(model: nn.Module, path: str | Path, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments recorded in a weight file that differ from the model's, among those that weights do not reveal.

    Args:
        model: the model.
        path: the weight file.
        state_dict: the content of the file.
    """
    own = getattr(model, "_arguments", {})
    recorded = recorded_arguments(model, path, state_dict)
    names = [name for name in getattr(model, "unrecoverable_args", ()) if name in recorded and name in own]
    return {name: recorded[name] for name in names if recorded[name] != to_tuples(own[name])}


def format_arguments(arguments: Mapping[str, Any]) -> str:
    """Arguments as they stand in a call."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def load_state_dict(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    source: str,
    *,
    strict: bool = True,
    adapt: bool = False,
    source_mean: Sequence[float] | None = None,
    skip: tuple[str, ...] = (),
) -> LoadReport:
    """`load_weights` of a state dict.

    Args:
        model: as in `load_weights`.
        state_dict: the weights.
        source: where they are from, for messages.
        strict: as in `load_weights`.
        adapt: as in `load_weights`.
        source_mean: mean of the network that was trained, where `adapt` needs another than the published one.
        skip: as in `load_weights`.
    """
    if hasattr(model, "convert_state_dict"):
        state_dict = model.convert_state_dict(state_dict)
    state_dict = {name: value for name, value in state_dict.items() if not name.startswith(skip)}
    mean = None
    if adapt and hasattr(model, "adapt_state_dict"):
        state_dict, mean = model.adapt_state_dict(state_dict, source_mean)
    report = check_fit(model, state_dict, source, strict=strict, skip=skip)
    if mean is not None:
        model.set_mean(mean)
    model.load_state_dict({name: state_dict[name] for name in report.loaded}, strict=False)
    return report


def check_fit(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str, *, strict: bool = True, skip: tuple[str, ...] = ()
) -> LoadReport:
    """What loading a state dict in the model's own layout would do, logged if that is not all.

    Raises:
        HatlibError: if nothing fits, or `strict` and not everything does.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(skip)}
    fitting = tuple(name for name, value in state_dict.items() if name in own and own[name].shape == value.shape)
    report = LoadReport(
        loaded=fitting,
        missing=tuple(name for name in own if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in own),
        mismatched=tuple(name for name in state_dict if name in own and own[name].shape != state_dict[name].shape),
        dtype=next((value.dtype for value in state_dict.values() if value.is_floating_point()), None),
    )
    if not fitting or (strict and not report.complete):
        advice = "; load_weights(strict=False) loads what fits" if fitting and not skip else ""
        raise HatlibError(f"{source!r} does not fit {type(model).__name__} as it was configured: {report}{advice}.")
    if not report.complete:
        _logger.warning("%s: loaded %d keys; %s.", source, len(report.loaded), report)
    return report


def load_detected(
    path: str | Path, ema: bool | None, strict: bool, overrides: Mapping[str, Any]
) -> tuple[nn.Module, torch.dtype | None]:
    """Builds the network that a weight file belongs to and loads it in float32.

    Args:
        path: the weight file.
        ema: as in `read_state_dict`.
        strict: as in `load_weights`.
        overrides: constructor arguments that replace the detected ones.

    Returns:
        The model in eval mode, and the type of the file's weights.

    Raises:
        UnknownArchitectureError: if no family of hatlib has these weights.
        HatlibError: if the file cannot be read or does not fit.
    """
    state_dict = read_state_dict(path, ema)
    header = read_header(path)
    found = None if "architecture" in header else detect(state_dict)
    if found is None and "architecture" not in header:
        raise UnknownArchitectureError(
            f"{str(path)!r} does not belong to an architecture of hatlib; hatlib.load loads it if spandrel "
            "knows the architecture."
        )
    recorded = header.get("model_args", {})
    detected = {name: value for name, value in (found[1] if found else {}).items() if name not in recorded}
    known = {**detected, **recorded, **overrides}
    unrecoverable: dict[str, Any] = {}
    if not (arch := header.get("architecture", "")):
        cls = found[0]
        arch, same = find_arch(cls, known, getattr(cls, "training_only_args", ()))
        if not same:  # the arch may have values of its own for what weights do not reveal
            parameters, names = constructor_parameters(cls), getattr(cls, "unrecoverable_args", ())
            unrecoverable = {name: parameters[name].default for name in names if name in parameters}
    saved = {**unrecoverable, **detected, **recorded}
    model = build_saved(arch, saved, overrides) if arch else found[0](**{**saved, **overrides})
    adapt = bool(overrides.keys() & {"in_chans", "out_chans"})
    report = load_state_dict(model, state_dict, str(path), strict=strict, adapt=adapt, source_mean=saved.get("mean"))
    arguments = model.config["model_args"]
    assumed = {name: arguments[name] for name in getattr(model, "unrecoverable_args", ()) if name not in known}
    model.provenance = Provenance(recorded, detected, dict(overrides), assumed)
    if assumed and sha256(path) not in known_hashes():
        warnings.warn(
            f"{Path(path).name} does not record {', '.join(assumed)}: taken as {format_arguments(assumed)}. If it was "
            "trained with other values, pass them to hatlib.load.",
            stacklevel=3,
        )
    return model.eval(), report.dtype


def read_header(path: str | Path) -> dict[str, Any]:
    """What hatlib wrote into a .safetensors file beside the weights; empty for other files."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    except (SafetensorError, ValueError) as error:
        raise _damaged(Path(path)) from error
    return header if isinstance(header, dict) else {}


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path) -> HatlibError:
    return HatlibError(f"{str(path)!r} is not a weight file, or it is damaged; download it again.")


def _unreadable(path: Path, error: OSError) -> HatlibError:
    return HatlibError(f"{str(path)!r} can't be read: {error.strerror or error}.")


def _count_names(what: str, names: tuple[str, ...]) -> str:
    return f"{len(names)} keys {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
