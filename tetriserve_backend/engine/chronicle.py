"""What the live engine writes down of what happens: the timeline, and the log."""

import logging
import time

from tetriserve_backend.domain import Request, Segment
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.timeline import (
    TimelineWriter,
    TraceEvent,
    arrive_event,
    outcome_event,
    segment_events,
    world_events,
)

_log = logging.getLogger(__name__)


class Chronicle:
    """Takes note of everything in the order in which it happens; times are seconds, monotonic.

    Args:
        timeline: where the timeline goes, if anywhere.
    """

    def __init__(self, timeline: TimelineWriter | None) -> None:
        self._timeline = timeline
        self._segments: dict[int, Segment] = {}
        self._origin_s = time.monotonic()

    def begin(self, world_size: int) -> None:
        """The timeline counts from now."""
        self._origin_s = time.monotonic()
        self._write(world_events(world_size))

    def arrived(self, request: Request) -> None:
        """A request came in."""
        self._write([arrive_event(request, self._origin_s)])

    def ended(self, request: Request, outcome: str, at_s: float) -> None:
        """A request was answered: `outcome` is finish, reject, cancel or fail."""
        self._write([outcome_event(outcome, request.request_id, at_s - self._origin_s)])

    def sent(self, segment: Segment) -> None:
        """A segment is on its way to its ranks, which will report it once."""
        self._segments[segment.segment_id] = segment

    def happened(self, event: ev.Event) -> None:
        """The ranks have something to tell."""
        if isinstance(event, ev.SegmentFinished):
            segment = self._segments.pop(event.segment_id)
            self._write(segment_events(segment, event.start_s - self._origin_s, event.end_s - self._origin_s))
        elif isinstance(event, ev.SegmentFailed):
            self._segments.pop(event.segment_id)
            _log.warning("segment %d failed: %s", event.segment_id, event.reason)
        elif isinstance(event, ev.WorkerLost):
            _log.warning("rank %d is lost: %s; its requests go on from their host copies", event.rank, event.reason)
        elif isinstance(event, ev.WorldFormed):
            _log.info("ranks %s are ready", list(event.ranks))

    def close(self) -> None:
        """No more comes."""
        if self._timeline is not None:
            self._timeline.close()

    def _write(self, events: list[TraceEvent]) -> None:
        if self._timeline is not None:
            self._timeline.write(events)
