"""What networks look at and what happens in them: local attribution maps, diffusion index, blocking artifacts."""

from hatlib.analysis.blocking import Blocking, blocking_ratio
from hatlib.analysis.diffusion import density, diffusion_index, gini
from hatlib.analysis.features import feature_maps
from hatlib.analysis.figure import draw_features, draw_lam
from hatlib.analysis.lam import Attribution, lam

__all__ = [
    "Attribution",
    "Blocking",
    "blocking_ratio",
    "density",
    "diffusion_index",
    "draw_features",
    "draw_lam",
    "feature_maps",
    "gini",
    "lam",
]
