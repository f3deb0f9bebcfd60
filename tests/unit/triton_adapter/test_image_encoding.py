"""Images come out as the pixels went in."""

import io

import numpy as np
import pytest
from PIL import Image

from tetriserve_backend.triton_adapter.image_encoding import encode_image
from tetriserve_backend.triton_adapter.image_format import ImageFormat

PIXELS = np.linspace(0, 255, 48 * 80 * 3).reshape(48, 80, 3).astype(np.uint8)


def test_png_keeps_every_pixel() -> None:
    image = Image.open(io.BytesIO(encode_image(PIXELS, ImageFormat.PNG)))
    assert np.array_equal(np.asarray(image), PIXELS)


def test_raw_is_the_pixels_row_by_row() -> None:
    raw = encode_image(PIXELS, ImageFormat.RAW)
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(48, 80, 3), PIXELS)


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_lossy_formats_stay_close(image_format: ImageFormat) -> None:
    image = Image.open(io.BytesIO(encode_image(PIXELS, image_format)))
    assert (image.format, image.size) == (image_format.value.upper(), (80, 48))
    difference = np.abs(np.asarray(image.convert("RGB"), np.int16) - PIXELS)
    assert difference.mean() < 3.0
