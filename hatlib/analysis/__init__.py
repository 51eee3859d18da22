"""What networks look at: local attribution maps, the diffusion index."""

from hatlib.analysis.diffusion import density, diffusion_index, gini
from hatlib.analysis.lam import Attribution, lam

__all__ = ["Attribution", "density", "diffusion_index", "gini", "lam"]
