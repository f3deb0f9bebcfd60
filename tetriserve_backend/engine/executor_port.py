"""What the asyncio shell needs of an executor; the xDiT workers provide it, tests provide a fake."""

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.events import (
    SegmentFailed,
    SegmentFinished,
    WorkerLost,
    WorkerReady,
    WorldFormed,
)


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A rank finished step `step_index` (counted from 0) of a request with `stream_progress`.

    `preview` is a small image of what the step promises, shape (rows, columns, 3), of a request with `preview`.
    """

    request_id: str
    step_index: int
    preview: npt.NDArray[np.uint8] | None = field(default=None, compare=False)


ExecutorEvent: TypeAlias = SegmentFinished | SegmentFailed | WorkerLost | WorkerReady | WorldFormed | StepProgress


class Executor(Protocol):
    """N ranks that run segments. All methods are called on one asyncio loop; none blocks it.

    Every segment that was sent is reported exactly once, as `SegmentFinished` or `SegmentFailed`.
    The executor owns the host copies: after each segment the conditioning or latent of each of its
    requests is in host memory before `SegmentFinished` is reported.
    """

    async def start(self) -> None:
        """Start the ranks, load the model, form the groups.

        Raises:
            ServerError: a rank could not start; nothing is left running.
        """

    def run_segment(self, command: RunSegment) -> None:
        """Send a segment to its ranks, which perform segments in one total order: that of these calls.

        Only a segment that waits for late work of its own request, or for its group to be healed, may be
        overtaken, on all of its ranks at once.
        """

    def release(self, request_id: str) -> None:
        """Forget a request's tensors everywhere, once its sent segments are over."""

    def reform_world(self) -> None:
        """Build all groups anew; answered by `WorldFormed`. Only called with no segment in flight."""

    def take_image(self, request_id: str) -> npt.NDArray[np.uint8]:
        """The decoded pixels, shape (height, width, 3), once; valid after its decode finished."""

    async def next_event(self) -> ExecutorEvent:
        """The next thing that happened, in order.

        Raises:
            ServerError: the ranks are beyond repair; the engine fails everything and says so.
        """

    async def shutdown(self) -> None:
        """End every rank; nothing of them is left. Idempotent."""
