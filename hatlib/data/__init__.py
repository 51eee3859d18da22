"""Training and evaluation data: MATLAB's bicubic resize, data sets, the endless sampler.

The library behind `hatlib data`, which checks data sets and cuts images into patches.
"""

from hatlib.blocks.imresize import imresize
from hatlib.data.datasets import ImagePairs, Pair, TrainingPatches, benchmark_folders, open_benchmarks
from hatlib.data.files import ImageIndex, index_images, read_rgb
from hatlib.data.sampler import EndlessSampler, training_loader

__all__ = [
    "EndlessSampler",
    "ImageIndex",
    "ImagePairs",
    "Pair",
    "TrainingPatches",
    "benchmark_folders",
    "imresize",
    "index_images",
    "open_benchmarks",
    "read_rgb",
    "training_loader",
]
