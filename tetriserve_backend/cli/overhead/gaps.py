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
