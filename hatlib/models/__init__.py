"""The networks, one file per family."""

from hatlib.models.base import ImageModel, RestorationModel
from hatlib.models.bicubic import Bicubic
from hatlib.models.build import build_model
from hatlib.models.edsr import EDSR
from hatlib.models.hat import HAT
from hatlib.models.rcan import RCAN
from hatlib.models.swinir import SwinIR

__all__ = ["EDSR", "HAT", "RCAN", "Bicubic", "ImageModel", "RestorationModel", "SwinIR", "build_model"]
