"""The networks, one file a family."""

from hatlib.models._base import RestorationModel
from hatlib.models._build import build_model
from hatlib.models.hat import HAT

__all__ = ["HAT", "RestorationModel", "build_model"]
