"""Benchmarks against other implementations; `python -m benchmarks.compare` runs them."""
