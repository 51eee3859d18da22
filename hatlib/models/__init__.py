"""The networks, one file a family."""

from hatlib.models._base import RestorationModel
from hatlib.models._build import build_model
from hatlib.models.edsr import EDSR
from hatlib.models.hat import HAT
from hatlib.models.rcan import RCAN
from hatlib.models.swinir import SwinIR

__all__ = ["EDSR", "HAT", "RCAN", "RestorationModel", "SwinIR", "build_model"]
