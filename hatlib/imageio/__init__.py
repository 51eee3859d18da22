"""Image files in and out: PNG, JPEG, WebP, TIFF, BMP and PNM, 8 and 16 bit, with alpha and metadata."""

from hatlib.imageio.image import SUFFIXES, Image
from hatlib.imageio.read import read_image
from hatlib.imageio.write import check_output, write_image

__all__ = ["SUFFIXES", "Image", "check_output", "read_image", "write_image"]
