"""hatlib: super-resolution and image restoration around HAT, from reusable blocks."""

from hatlib import models  # which registers them
from hatlib.errors import HatlibError
from hatlib.load import create_model, load_checkpoint
from hatlib.registry import ModelInfo, list_models, model_info, register_model
from hatlib.version import __version__

__all__ = [
    "HatlibError",
    "ModelInfo",
    "__version__",
    "create_model",
    "list_models",
    "load_checkpoint",
    "model_info",
    "models",
    "register_model",
]
