"""Other ways to run a network, with the interface of our models: ONNX Runtime, and networks of spandrel."""

from hatlib.engines.foreign import ForeignModel, load_foreign
from hatlib.engines.onnxruntime import OnnxModel

__all__ = ["ForeignModel", "OnnxModel", "load_foreign"]
