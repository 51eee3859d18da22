"""hatlib: super-resolution and image restoration around HAT, from reusable blocks."""

from hatlib import models
from hatlib.detection import register_detector
from hatlib.errors import HatlibError
from hatlib.load import create_model, load
from hatlib.networks import ModelInfo, Weights, list_models, model_info, register_model
from hatlib.registry import discover_plugins, register_attention, register_head
from hatlib.version import __version__

__all__ = [
    "HatlibError",
    "ModelInfo",
    "Weights",
    "__version__",
    "create_model",
    "list_models",
    "load",
    "model_info",
    "models",
    "register_attention",
    "register_detector",
    "register_head",
    "register_model",
]

discover_plugins()  # last, so that a plugin finds everything in place
