"""The networks, one file a family."""

from hatlib.models.base import RestorationModel
from hatlib.models.build import build_model
from hatlib.models.edsr import EDSR
from hatlib.models.hat import HAT
from hatlib.models.rcan import RCAN
from hatlib.models.swinir import SwinIR

__all__ = ["EDSR", "HAT", "RCAN", "RestorationModel", "SwinIR", "build_model"]
