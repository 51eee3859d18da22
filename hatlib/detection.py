"""Detection: which class, constructor arguments and registered arch belong to weights that do not name them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatlib.errors import HatlibError
from hatlib.networks import networks
from hatlib.registry import constructor_parameters, to_tuples

__all__ = ["detect", "find_arch", "register_detector"]

Detector = Callable[[Mapping[str, Tensor]], dict[str, Any] | None]

_detectors: dict[type[nn.Module], Detector] = {}


def register_detector(cls: type[nn.Module]) -> Callable[[Detector], Detector]:
    """Decorator that registers how weights of a class are detected, for files that do not name their architecture.

    The decorated function takes a state dict in any layout of the family. It returns the constructor arguments that the
    weights reveal, or None if the weights belong to another family.
    """

    def decorate(fn: Detector) -> Detector:
        _detectors[cls] = fn
        return fn

    return decorate


def detect(state_dict: Mapping[str, Tensor]) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class that has these weights and the constructor arguments that they reveal, or None.

    If several families claim the weights, the one whose network has most of their names and shapes is taken.

    Raises:
        HatlibError: if several families explain the weights equally well.
    """
    networks.names()  # imports the families
    claims = [(cls, args) for cls, detector in _detectors.items() if (args := detector(state_dict)) is not None]
    if len(claims) < 2:
        return claims[0] if claims else None
    scores = [_matches(cls, args, state_dict) for cls, args in claims]
    best = [claim for claim, score in zip(claims, scores, strict=True) if score == max(scores)]
    if len(best) > 1:
        names = " and ".join(cls.__name__ for cls, _ in best)
        raise HatlibError(f"The weights fit {names} equally well; load them with from_pretrained of the right class.")
    return best[0]


def _matches(cls: type[nn.Module], args: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> int:
    """Number of weights that a network has under the same name in the same shape, less those that it lacks."""
    try:
        with torch.device("meta"):
            own = cls(**args).state_dict()
    except HatlibError:
        return -len(state_dict)
    converted = cls.convert_state_dict(dict(state_dict)) if hasattr(cls, "convert_state_dict") else state_dict
    same = sum(name in own and own[name].shape == value.shape for name, value in converted.items())
    return same - len(own.keys() - converted.keys())


def find_arch(
    cls: type[nn.Module], arguments: Mapping[str, Any], ignore: tuple[str, ...] = (), complete: bool = False
) -> tuple[str, bool]:
    """Returns the arch to build a network with, and whether it is exactly that network.

    If no arch of the class has these constructor arguments, the arch is the one with the shortest name at the same
    scale, else at any scale, to which the arguments must be passed. It is empty if the class has no arch.

    Args:
        cls: the class.
        arguments: constructor arguments, all of them or those that are known.
        ignore: arguments that do not change the network.
        complete: whether a missing argument is one that the class sets itself, and not an unknown value. An arch that
            sets it is then another network.
    """
    infos = [info for info in map(networks.get, networks.names()) if info.model_class is cls]
    infos.sort(key=lambda info: (len(info.arch), info.arch))
    defaults = {name: parameter.default for name, parameter in constructor_parameters(cls).items()}
    relevant = {name: to_tuples(value) for name, value in arguments.items() if name not in ignore}
    if complete:
        infos = [info for info in infos if info.model_args.keys() <= arguments.keys()]
    for info in infos:
        own = {**defaults, **info.model_args}
        if all(name in own and own[name] == value for name, value in relevant.items()):
            return info.arch, True
    infos.sort(key=lambda info: info.scale != arguments.get("upscale"))
    return (infos[0].arch if infos else ""), False
