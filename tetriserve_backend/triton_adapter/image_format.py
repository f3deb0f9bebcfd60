"""The image formats that a client may ask for."""

from enum import Enum


class ImageFormat(str, Enum):
    """Named as in the field `output_format`."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
