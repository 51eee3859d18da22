"""Constructor arguments as configuration: captured when a model is made, written to JSON, and read back."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.layers
from torch import nn

from hatlib.errors import HatlibError
from hatlib.registry import registries

__all__ = ["CONFIG_NAME", "capture_arguments", "decode", "encode", "read_config"]

CONFIG_NAME = "config.json"
# Modules whose layer classes a configuration may name. No other module is imported for a file.
_LAYERS = {"torch.nn": nn, "timm.layers": timm.layers}


def capture_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Wraps a constructor so that the instance keeps all its arguments in `_arguments`, and then calls `post_init`.

    Defaults are kept because a later version may have other defaults. Where a constructor passes `**kwargs` on to its
    base class, the defaults of the base class are kept too, unless the constructor sets them itself.
    """
    signature = inspect.signature(init)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values()):
        raise HatlibError(f"{init.__qualname__} takes *args, which cannot be saved by name; use named parameters.")
    variadic = next((p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)

    @functools.wraps(init)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        args, kwargs = tuple(map(decode, args)), {name: decode(value) for name, value in kwargs.items()}
        state = self.__dict__  # not attributes: the constructor of nn.Module has not run yet
        outermost = "_arguments" not in state
        if outermost:
            state["_arguments"], state["_capturing"] = {}, True
        if state["_capturing"]:
            bound = signature.bind(self, *args, **kwargs)
            passed = set(bound.arguments)
            bound.apply_defaults()
            for name, value in list(bound.arguments.items())[1:]:
                if name == variadic:
                    state["_arguments"].update(value if outermost else {})
                elif outermost or name not in passed:
                    state["_arguments"].setdefault(name, value)
            state["_capturing"] = variadic is not None
        init(self, *args, **kwargs)
        if outermost:
            del state["_capturing"]
            self.post_init()

    return wrapper


def encode(value: Any, name: str) -> Any:
    """A constructor argument as JSON has it, with tuples for lists.

    Registered parts become their names, classes of torch.nn and timm.layers become 'torch.nn.LayerNorm'.

    Raises:
        HatlibError: if JSON cannot hold the value.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(encode(item, name) for item in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, name) for key, item in value.items()}
    for registry in registries.values():
        if (registered := registry.name_of(value)) is not None:
            return registered
    if isinstance(value, type):
        for module, layers in _LAYERS.items():
            if getattr(layers, value.__name__, None) is value:
                return f"{module}.{value.__name__}"
    raise HatlibError(
        f"{name}={value!r} cannot be written to {CONFIG_NAME}: numbers, strings, tuples, registered parts and classes "
        "of torch.nn and timm.layers can. Register the part, or derive a network that builds it."
    )


def decode(value: Any) -> Any:
    """A constructor argument from what `encode` returned.

    Raises:
        HatlibError: if a layer is named that torch.nn or timm.layers does not have.
    """
    module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    if module in _LAYERS:
        layer = getattr(_LAYERS[module], name, None)
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise HatlibError(f"There is no layer {value!r}.")
        return layer
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}  # a copy, which the caller cannot change
    return tuple(map(decode, value)) if isinstance(value, (list, tuple)) else value


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a saved model, with `model_args` as the constructor takes them.

    Raises:
        HatlibError: if there is none, or it is not one of a model.
    """
    path = Path(folder) / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HatlibError(f"{str(folder)!r} holds no saved model: there is no {CONFIG_NAME} in it.") from error
    except (OSError, ValueError) as error:
        raise HatlibError(f"{str(path)!r} can't be read as JSON: {error}.") from error
    if not isinstance(config, dict) or not (config.keys() & {"architecture", "hatlib_class"}):
        raise HatlibError(f"{str(path)!r} is not the configuration of a model of hatlib or timm.")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise HatlibError(f"'model_args' in {str(path)!r} must be an object of constructor arguments.")
    return {**config, "model_args": {name: decode(value) for name, value in arguments.items()}}
