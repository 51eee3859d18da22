"""Constructor arguments as configuration: captured when a model is made, written to JSON, and read back."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hatlib.errors import HatlibError
from hatlib.registry import to_tuples

__all__ = ["capture_arguments", "decode", "encode", "read_config"]

CONFIG_NAME = "config.json"
_LAYERS = "torch.nn."


def capture_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Wraps a constructor so that all its arguments, defaults included, are kept in `_arguments`.

    Defaults are kept because a later version may have others. Names of layers, as JSON has them, become the layers.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if "_arguments" in self.__dict__:  # a base class's constructor, called by the subclass's
            return init(self, *args, **kwargs)
        args, kwargs = tuple(map(decode, args)), {name: decode(value) for name, value in kwargs.items()}
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            variadic = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments.update(value if variadic else {name: value})
        # Not an attribute of its own: nn.Module's constructor has not run yet.
        self.__dict__["_arguments"] = arguments
        return init(self, *args, **kwargs)

    return wrapper


def encode(value: Any, name: str) -> Any:
    """A constructor argument as JSON has it, with tuples for lists.

    Raises:
        HatlibError: if JSON can't hold it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(encode(item, name) for item in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, name) for key, item in value.items()}
    if isinstance(value, type) and getattr(nn, value.__name__, None) is value:
        return _LAYERS + value.__name__
    raise HatlibError(
        f"{name}={value!r} can't be written to {CONFIG_NAME}: numbers, strings, tuples and classes of torch.nn can."
    )


def decode(value: Any) -> Any:
    """A constructor argument from what `encode` made of it."""
    if isinstance(value, str) and value.startswith(_LAYERS):
        layer = getattr(nn, value.removeprefix(_LAYERS), None)
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise HatlibError(f"There is no layer {value!r}.")
        return layer
    return to_tuples(value)


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
