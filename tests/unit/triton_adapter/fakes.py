"""Stand-ins for what only exists inside Triton's stub process, and a small engine."""

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import DuplicateRequestError, Request, RequestCancelledError, TetriserveError
from tetriserve_backend.engine.commands import SegmentRecord
from tetriserve_backend.engine.request_listener import Answer, RequestListener

FINAL = 1


class FakeTritonError(Exception):
    INVALID_ARG, ALREADY_EXISTS, CANCELLED, UNAVAILABLE, INTERNAL = range(5)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message, self.code = message, code


pb_utils = SimpleNamespace(
    TritonError=FakeTritonError,
    InferenceResponse=lambda outputs=(), error=None: SimpleNamespace(outputs=outputs, error=error),
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
)


@dataclass
class FakeSender:
    """As strict as Triton: nothing may happen after the final response, and large responses may not fit."""

    sent: list[tuple[Any, int]] = field(default_factory=list)
    gone: bool = False
    too_large: bool = False
    failing_sends: int = 0

    @property
    def is_final(self) -> bool:
        return any(flags == FINAL for _, flags in self.sent)

    @property
    def errors(self) -> list[str]:
        return [response.error.message for response, _ in self.sent if getattr(response, "error", None)]

    def send(self, response: Any, flags: int) -> None:
        assert not self.is_final, "sent after the final response"
        if self.failing_sends:
            self.failing_sends -= 1
            raise RuntimeError("No space left on device")
        if self.too_large and getattr(response, "error", None) is None:
            raise RuntimeError("No space left on device")
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        assert not self.is_final, "is_cancelled() after the final response crashes tritonserver"
        return self.gone


class FakeEngine:
    """Takes requests and finishes them when told to."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[Request, RequestListener]] = {}
        self.drained_with: list[float] = []

    def submit(self, request: Request, listener: RequestListener, *siblings: Request) -> None:
        requests = (request, *siblings)
        for taken in (each for each in requests if each.request_id in self.waiting):
            listener.on_error(taken, DuplicateRequestError(taken.request_id))
            return
        self.waiting.update((each.request_id, (each, listener)) for each in requests)

    def finish(self, request_id: str) -> None:
        request, listener = self.waiting.pop(request_id)
        now_s = time.monotonic()
        records = (SegmentRecord("denoise", (0, 1, 2, 3), 0, request.num_steps, request.arrival_s + 0.5, now_s, 3, 2),)
        pixels = np.zeros((request.height, request.width, 3), np.uint8)
        listener.on_finish(Answer(request, pixels, now_s, now_s, records))

    def fail(self, request_id: str, error: TetriserveError) -> None:
        request, listener = self.waiting.pop(request_id)
        listener.on_error(request, error)

    def progress(self, request_id: str, step_index: int, preview: npt.NDArray[np.uint8] | None = None) -> None:
        request, listener = self.waiting[request_id]
        listener.on_progress(request, step_index, preview)

    def cancel(self, request_id: str) -> bool:
        entry = self.waiting.pop(request_id, None)
        if entry is not None:
            entry[1].on_error(entry[0], RequestCancelledError("cancelled"))
        return entry is not None

    def status(self) -> dict[str, object]:
        return {"state": "serving"}

    async def drain(self, timeout_s: float) -> None:
        self.drained_with.append(timeout_s)
        await asyncio.sleep(0.01)

    async def shutdown(self) -> None:
        for request_id in list(self.waiting):
            self.cancel(request_id)
