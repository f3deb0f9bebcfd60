"""The model `postprocess`: pixels to what the client asked for, and the metadata that is only known then."""

import base64
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.triton_adapter.image_encoding import encode_image
from tetriserve_backend.triton_adapter.model_io import begin_each, input_tensors, int_tensor, text_input, text_tensor
from tetriserve_backend.triton_adapter.request_spec import RENDERING_KEY, Rendering, load_rendering
from tetriserve_backend.triton_adapter.response_metadata import IMAGE
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.stub import pb_utils

_MAX_WORKERS = 8
_MAX_METADATA_BYTES = 4 * 2**20
"""The metadata of thousands of segments are smaller, and so is a status with dozens of latency tables."""
_MAX_PREVIEW_BYTES = 256 * 256 * 3
"""Those of `denoise` have at most 128 pixels a side."""


class TritonPythonModel:
    """Encodes images on a few threads; everything else is answered at once, previews too: they are small.

    An image's progress messages come before it, so answering them at once keeps their order,
    and they do not wait behind other images.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the threads."""
        start_death_watch()
        self._workers = ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1), thread_name_prefix="encode")

    def execute(self, requests: list[Any]) -> None:
        """Answer through response senders: this model must never block on an image."""
        begin_each(requests, self._begin)

    def finalize(self) -> None:
        """Finish what is being encoded."""
        self._workers.shutdown()

    def _begin(self, request: Any, sender: SafeSender) -> None:
        tensors = input_tensors(request)
        metadata = json.loads(text_input(tensors, "metadata", _MAX_METADATA_BYTES))
        if metadata.get("type") == IMAGE:
            self._workers.submit(_encode_and_answer, sender, tensors, metadata)
        else:
            pixels = tensors["pixels"]
            if pixels.size > _MAX_PREVIEW_BYTES:
                allowed = f"at most {_MAX_PREVIEW_BYTES} bytes"
                raise InvalidRequestError("pixels", f"a preview of {pixels.size} bytes", allowed)
            image = _encode(pixels, metadata, _take_rendering(metadata)) if pixels.size else b""
            sender.send_last(_response(image, tensors, metadata))


def _encode_and_answer(sender: SafeSender, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, Any]) -> None:
    try:
        start_s = time.monotonic()
        rendering = _take_rendering(metadata)
        image = _encode(tensors["pixels"], metadata, rendering)
        end_s = time.monotonic()
        metadata["image_encode_s"] = round(end_s - start_s, 6)
        metadata["total_s"] = round(end_s - rendering.arrival_s, 6)
        metadata["deadline_met"] = end_s <= rendering.deadline_s
        sender.send_last(_response(image, tensors, metadata))
    except Exception as error:
        sender.send_error(error)


def _take_rendering(metadata: dict[str, Any]) -> Rendering:
    return load_rendering(metadata.pop(RENDERING_KEY))


def _encode(pixels: npt.NDArray[np.uint8], metadata: dict[str, Any], rendering: Rendering) -> bytes:
    """The bytes for the client; `metadata` gets what it needs to read them."""
    image = encode_image(np.ascontiguousarray(pixels), rendering.output_format)
    metadata["output_format"] = rendering.output_format.value
    metadata["image_shape"] = list(pixels.shape)
    return base64.b64encode(image) if rendering.is_base64 else image


def _response(image: bytes, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, Any]) -> Any:
    step = int_tensor("step", int(tensors["step"][0]))
    return pb_utils.InferenceResponse(
        [text_tensor("image", image), step, text_tensor("metadata", json.dumps(metadata))]
    )
