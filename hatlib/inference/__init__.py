"""Running a model on images: any size, whole or in blended tiles, gray, color and alpha, in memory or beyond it."""

from hatlib.inference.memory import auto_tile, estimate_memory, free_bytes
from hatlib.inference.runner import default_overlap
from hatlib.inference.tiling import Span, blend_weights, tile_spans, tiled, tiled_strips
from hatlib.inference.upscaler import Upscaler

__all__ = [
    "Span",
    "Upscaler",
    "auto_tile",
    "blend_weights",
    "default_overlap",
    "estimate_memory",
    "free_bytes",
    "tile_spans",
    "tiled",
    "tiled_strips",
]
