"""Running a model on images: any size, whole or in blended tiles, gray, colour and alpha."""

from hatlib.inference.tiling import Span, blend_weights, tile_spans, tiled
from hatlib.inference.upscaler import Upscaler

__all__ = ["Span", "Upscaler", "blend_weights", "tile_spans", "tiled"]
