"""Image files in and out: PNG, JPEG, WebP, TIFF, BMP and PNM, 8 and 16 bit, with alpha and metadata.

`read_image` and `write_image` for images that fit into memory, `open_image` and `image_writer` for rows of any.
"""

from hatlib.imageio.image import IMAGE_SUFFIXES, Header, Image
from hatlib.imageio.read import ImageReader, open_image, read_image
from hatlib.imageio.write import ROW_WISE, ImageWriter, check_output, image_writer, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "ROW_WISE",
    "Header",
    "Image",
    "ImageReader",
    "ImageWriter",
    "check_output",
    "image_writer",
    "open_image",
    "read_image",
    "write_image",
]
