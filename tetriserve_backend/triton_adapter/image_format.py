"""The image formats that a client may ask for."""

from enum import Enum


class ImageFormat(str, Enum):
    """Named as in the field `output_format`. RAW is no file: uint8, row by row, three bytes for each pixel."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW = "raw"
