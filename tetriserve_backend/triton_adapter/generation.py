"""One `generate` of `denoise`: one or several images, each a request of its own to the engine."""

import asyncio
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import DuplicateRequestError, Request, TetriserveError
from tetriserve_backend.engine.request_listener import Answer
from tetriserve_backend.triton_adapter.outbox import NO_PIXELS, Outbox
from tetriserve_backend.triton_adapter.request_spec import RENDERING_KEY, RequestSpec, dump_rendering
from tetriserve_backend.triton_adapter.response_metadata import image_metadata, progress_metadata
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.serving import Engine


class Generation:
    """Submits the images of one request and answers its client: each image as soon as it is done, or one error.

    All or nothing: when one image fails or the request is cancelled, the others are stopped, and the error is the
    last answer. On the engine's loop only, but for `is_abandoned`.

    Args:
        spec: what was asked for, fitted to its model.
        sender: the way to the client.
        outbox: makes the responses and sends them.
        on_end: called once, before the last answer is posted.
    """

    def __init__(
        self, spec: RequestSpec, sender: SafeSender, engine: Engine, outbox: Outbox, on_end: Callable[[], object]
    ) -> None:
        self._spec, self._sender = spec, sender
        self._engine, self._outbox, self._on_end = engine, outbox, on_end
        self._requests = spec.to_requests()
        self._index = {request.request_id: index for index, request in enumerate(self._requests)}
        self._left = set(self._index)
        self._has_failed = False

    def begin(self) -> None:
        """Hand the images to the engine, all at once."""
        first, *others = self._requests
        self._engine.submit(first, self, *others)

    def cancel(self) -> bool:
        """Stop what is not done yet; false if everything is."""
        # The last first, so that none of them starts because one before it stopped.
        left = [request.request_id for request in reversed(self._requests) if request.request_id in self._left]
        stopped = [self._engine.cancel(request_id) for request_id in left]
        return any(stopped)

    def is_abandoned(self) -> bool:
        """Whether the client went away (only seen for direct calls of `denoise`). Any thread."""
        return self._sender.is_cancelled()

    def on_progress(self, request: Request, step_index: int, preview: npt.NDArray[np.uint8] | None) -> None:
        """A step of one image is done; `preview` has shape (rows, columns, 3)."""
        facts = progress_metadata(self._spec, self._index[request.request_id], step_index + 1)
        self._post(facts, NO_PIXELS if preview is None else preview, step_index + 1, last=False)

    def on_finish(self, answer: Answer) -> None:
        """One image is there."""
        self._left.remove(answer.request.request_id)
        if self._has_failed:
            return
        facts = image_metadata(answer, self._spec, self._index[answer.request.request_id])
        if not self._left:
            self._on_end()
        self._post(facts, answer.pixels, self._spec.num_inference_steps, last=not self._left)

    def on_error(self, request: Request, error: TetriserveError) -> None:
        """One image will not be there, so the request fails."""
        self._left.discard(request.request_id)
        if self._has_failed:
            return
        self._has_failed = True
        self._on_end()
        if isinstance(error, DuplicateRequestError):
            # By the id that the client knows.
            error = DuplicateRequestError(self._spec.request_id)
        self._outbox.post_error(self._sender, error)
        if self._left:
            # Not from here: the engine is in the middle of an event.
            asyncio.get_running_loop().call_soon(self.cancel)

    def _post(self, facts: dict[str, object], pixels: npt.NDArray[np.uint8], step: int, *, last: bool) -> None:
        if pixels.size:
            facts[RENDERING_KEY] = dump_rendering(self._spec.rendering)
        self._outbox.post(self._sender, facts, pixels, step, last=last)
