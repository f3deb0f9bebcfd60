"""How long ranks wait between two segments of one request that stays on them."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gap:
    """Seconds between two consecutive denoise segments on the same ranks, and how long the first one took."""

    gap_s: float
    segment_s: float


def segment_gaps(events: Iterable[dict[str, Any]]) -> list[Gap]:
    """The gaps in the trace events of a timeline."""
    segments: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.get("ph") == "X" and event["cat"] == "denoise":
            segments[event["args"]["segment"]] = event
    by_request: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in segments.values():
        for part in event["args"]["requests"]:
            by_request[part["id"]].append(event)
    gaps = []
    for spans in by_request.values():
        spans.sort(key=lambda event: float(event["ts"]))
        for before, after in itertools.pairwise(spans):
            if before["args"]["gpus"] == after["args"]["gpus"]:
                gap_us = after["ts"] - before["ts"] - before["dur"]
                gaps.append(Gap(gap_us / 1e6, before["dur"] / 1e6))
    return gaps


@dataclass(frozen=True, slots=True)
class RequestIdle:
    """Idle time of ranks between two segments of one request that stays on them, and how long all of its segments took.

    Work that the ranks do for others in between is not idle time; encode and decode count as segments.
    """

    request_id: str
    idle_s: float
    work_s: float

    @property
    def share(self) -> float:
        """Of idle time in the time of the segments; 0 where there are none."""
        return self.idle_s / self.work_s if self.work_s else 0.0


def idle_share(requests: Iterable[RequestIdle]) -> float:
    """Idle time of all of them over the time of all of their segments; 0 where there are none."""
    listed = list(requests)
    return RequestIdle("all", sum(one.idle_s for one in listed), sum(one.work_s for one in listed)).share


def idle_of_requests(events: Iterable[dict[str, Any]]) -> list[RequestIdle]:
    """Of every request that has a segment among the trace events of a timeline."""
    busy: dict[int, list[tuple[int, int]]] = defaultdict(list)
    by_request: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") != "X":
            continue
        busy[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        if event["tid"] == event["args"]["gpus"][0]:
            for part in event["args"]["requests"]:
                by_request[part["id"]].append(event)
    found = []
    for request_id, spans in by_request.items():
        spans.sort(key=lambda event: int(event["ts"]))
        idle_us = 0
        for before, after in itertools.pairwise(spans):
            gpus = before["args"]["gpus"]
            if gpus == after["args"]["gpus"]:
                window = before["ts"] + before["dur"], after["ts"]
                idle_us += _uncovered(window, [span for gpu in gpus for span in busy[gpu]])
        found.append(RequestIdle(request_id, idle_us / 1e6, sum(event["dur"] for event in spans) / 1e6))
    return found


def _uncovered(window: tuple[int, int], spans: list[tuple[int, int]]) -> int:
    """How much of `window` no span covers."""
    start, end = window
    left = 0
    for begin, finish in sorted(span for span in spans if span[0] < end and span[1] > start):
        left += max(0, begin - start)
        start = max(start, finish)
    return left + max(0, end - start)
