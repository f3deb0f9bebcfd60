"""Pixels to the bytes that a client asked for."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tetriserve_backend.triton_adapter.image_format import ImageFormat

# PNG level 1 instead of 6: a third of the time for about a tenth more bytes, and the time is the client's.
_SAVE_OPTIONS: Final[dict[ImageFormat, dict[str, int]]] = {
    ImageFormat.PNG: {"compress_level": 1},
    ImageFormat.JPEG: {"quality": 95},
    ImageFormat.WEBP: {"quality": 95, "method": 2},
}


def encode_image(pixels: npt.NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """The bytes of the file, or of the pixels themselves, for RGB `pixels` of shape (height, width, 3)."""
    if image_format is ImageFormat.RAW:
        return pixels.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(buffer, image_format.value, **_SAVE_OPTIONS[image_format])
    return buffer.getvalue()
