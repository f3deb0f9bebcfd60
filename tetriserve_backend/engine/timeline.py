"""What ran where and when, in the Chrome trace-event format that Perfetto and chrome://tracing open."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tetriserve_backend.domain import Request, Segment, SegmentKind

TraceEvent: TypeAlias = dict[str, Any]

_log = logging.getLogger(__name__)
_TAIL = b"\n]}\n"


def segment_events(segment: Segment, start_s: float, end_s: float) -> list[TraceEvent]:
    """One complete event per rank of a finished segment; times in seconds since the timeline began."""
    names = " ".join(part.request_id for part in segment.parts)
    start_us, end_us = round(start_s * 1e6), round(end_s * 1e6)
    args = {
        "segment": segment.segment_id,
        "gpus": list(segment.placement.ranks),
        "requests": [_part_args(segment, index) for index in range(segment.batch_size)],
        "height": segment.height,
        "width": segment.width,
        **_model_args(segment.model),
        **({"cfg": segment.cfg_degree} if segment.cfg_degree > 1 else {}),
    }
    return [
        {
            "ph": "X",
            "pid": 0,
            "tid": rank,
            "name": f"{segment.kind.value} {names}",
            "cat": segment.kind.value,
            "ts": start_us,
            "dur": max(0, end_us - start_us),
            "args": args,
        }
        for rank in segment.placement.ranks
    ]


def arrive_event(request: Request, origin_s: float) -> TraceEvent:
    """A request came in; `origin_s` is the time that the timeline counts from."""
    args = {
        "id": request.request_id,
        "deadline_us": round((request.deadline_s - origin_s) * 1e6),
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_steps,
        **_model_args(request.model),
    }
    return _instant("arrive", request.arrival_s - origin_s, args)


def outcome_event(outcome: str, request_id: str, at_s: float) -> TraceEvent:
    """A request ended: `outcome` is finish, reject, cancel or fail; `at_s` since the timeline began."""
    return _instant(outcome, at_s, {"id": request_id})


def world_events(world_size: int) -> list[TraceEvent]:
    """Names for the viewer: one track per GPU and one for the requests."""
    tracks = [(0, rank, f"GPU {rank}") for rank in range(world_size)] + [(1, 0, "requests")]
    return [
        {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}} for pid, tid, name in tracks
    ]


def _instant(name: str, at_s: float, args: dict[str, Any]) -> TraceEvent:
    return {"ph": "i", "s": "p", "pid": 1, "tid": 0, "name": name, "ts": round(at_s * 1e6), "args": args}


def _model_args(model: str) -> dict[str, Any]:
    """Nothing where there is but one model, without a name."""
    return {"model": model} if model else {}


def _part_args(segment: Segment, index: int) -> dict[str, Any]:
    part = segment.parts[index]
    if segment.kind is not SegmentKind.DENOISE:
        return {"id": part.request_id}
    return {"id": part.request_id, "first_step": part.first_step, "steps": part.num_steps}


class TimelineWriter(Protocol):
    """Takes trace events as they happen."""

    def write(self, events: list[TraceEvent]) -> None:
        """Add events."""

    def close(self) -> None:
        """No more events come. Idempotent."""


class TimelineRecorder:
    """Keeps the events in memory."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []

    def write(self, events: list[TraceEvent]) -> None:
        """Add events."""
        self.events.extend(events)

    def close(self) -> None:
        """Nothing to do."""


class TimelineFile:
    """A timeline file that is complete, valid JSON after every write, so that it can be read as it grows.

    Each write overwrites the closing brackets with the new events and new closing brackets, in one call.
    A disk that is full costs the rest of the timeline, not the requests: that is logged once.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        head = b'{"displayTimeUnit": "ms", "traceEvents": ['
        os.pwrite(self._fd, head + _TAIL, 0)
        self._end, self._first, self._open = len(head), True, True

    def write(self, events: list[TraceEvent]) -> None:
        """Append events; after `close` they are dropped."""
        if not events or not self._open:
            return
        lines = (",\n" if not self._first else "\n") + ",\n".join(json.dumps(event) for event in events)
        data = lines.encode()
        try:
            os.pwrite(self._fd, data + _TAIL, self._end)
        except OSError as error:
            _log.error("%s: the timeline ends here: %s", self._path, error)
            self.close()
            return
        self._end, self._first = self._end + len(data), False

    def close(self) -> None:
        """Close the file."""
        if self._open:
            self._open = False
            os.close(self._fd)
