"""hatlib: super-resolution and image restoration around HAT, from reusable blocks."""

from hatlib import models  # which registers them
from hatlib.checkpoint import load_checkpoint
from hatlib.errors import HatlibError
from hatlib.factory import create_model
from hatlib.registry import ModelInfo, list_models, model_info, register_model

__version__ = "0.1.0"

__all__ = [
    "HatlibError",
    "ModelInfo",
    "create_model",
    "list_models",
    "load_checkpoint",
    "model_info",
    "models",
    "register_model",
]
