"""How whoever asked for an image hears of it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import Request, TetriserveError
from tetriserve_backend.engine.commands import SegmentRecord


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished image: `pixels` has shape (height, width, 3), times are seconds, monotonic."""

    request: Request
    pixels: npt.NDArray[np.uint8]
    finish_s: float
    predicted_finish_s: float
    segments: tuple[SegmentRecord, ...]


class RequestListener(Protocol):
    """Who wants to know about one request. Called on the engine's loop; must not block."""

    def on_progress(self, request: Request, step_index: int, preview: npt.NDArray[np.uint8] | None) -> None:
        """Step `step_index` (from 0) is done; only for requests with `stream_progress`.

        `preview`, of those with `preview`, is a small image of shape (rows, columns, 3).
        """

    def on_finish(self, answer: Answer) -> None:
        """The image is there. Last call."""

    def on_error(self, request: Request, error: TetriserveError) -> None:
        """There will be no image. Last call."""
