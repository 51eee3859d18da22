"""Training and evaluation data: MATLAB's bicubic resize."""

from hatlib.data.imresize import imresize

__all__ = ["imresize"]
