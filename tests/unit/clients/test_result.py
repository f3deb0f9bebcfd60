"""Responses become progress and images, and images a result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tetriserve_client import GenerateResult, ImageResult, Progress, ServerFailureError
from tetriserve_client.result import read_event
from tetriserve_client.wire import Reply


def image(index: int, num_images: int = 2, **told: Any) -> ImageResult:
    metadata = {"image_index": index, "num_images": num_images, "seed": 7 + index, "deadline_met": True, **told}
    return ImageResult(f"image {index}".encode(), metadata, 1.0)


def test_response_says_by_its_type_what_it_is() -> None:
    progress = {"type": "progress", "image_index": 1, "num_images": 2, "num_inference_steps": 4}
    assert read_event(Reply(b"", 3, progress, False), 0.5) == Progress(3, 4, 0.5, 1, None)
    assert read_event(Reply(b"small", 3, progress, False), 0.5) == Progress(3, 4, 0.5, 1, b"small")
    done = {"type": "image", "image_index": 1}
    assert read_event(Reply(b"large", 4, done, True), 0.5) == ImageResult(b"large", done, 0.5)
    assert read_event(Reply(b"", 0, None, True), 0.5) is None


def test_images_are_in_order_however_they_came() -> None:
    result = GenerateResult.of([image(1, deadline_met=False), image(0)], 2.0)
    assert [one.index for one in result.images] == [0, 1]
    assert (result.image, result.seed, result.deadline_met) == (b"image 0", 7, False)


@pytest.mark.parametrize("images", [[], [image(1)], [image(0)], [image(0), image(0)]])
def test_result_lacks_no_image(images: list[ImageResult]) -> None:
    with pytest.raises(ServerFailureError, match="images"):
        GenerateResult.of(images, 2.0)


def test_one_image_is_saved_by_its_name_and_several_by_their_index(tmp_path: Path) -> None:
    assert GenerateResult.of([image(0, 1)], 2.0).save(tmp_path / "fox.png") == (tmp_path / "fox.png",)
    saved = GenerateResult.of([image(0), image(1)], 2.0).save(tmp_path / "fox.png")
    assert [path.name for path in saved] == ["fox-0.png", "fox-1.png"]
    assert saved[1].read_bytes() == b"image 1"


def test_raw_image_has_pixels_and_others_say_why_not() -> None:
    metadata = {"output_format": "raw", "image_shape": [1, 2, 3]}
    pixels = ImageResult(bytes(range(6)), metadata, 1.0).pixels
    assert np.array_equal(pixels, np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    with pytest.raises(ValueError, match="png"):
        _ = ImageResult(b"", {"output_format": "png"}, 1.0).pixels
