"""A timeline file read back: who worked for whom, and how each request ended."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ENDS = frozenset({"finish", "reject", "cancel", "fail"})


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """One GPU's part of one segment; times in seconds since the timeline began."""

    gpu: int
    kind: str
    request_ids: tuple[str, ...]
    sp_degree: int
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """One request from its arrival to its end; `end_s` and `outcome` are None while it has none.

    `model` is "" where the timeline names none.
    """

    request_id: str
    height: int
    width: int
    num_steps: int
    arrival_s: float
    deadline_s: float
    end_s: float | None
    outcome: str | None
    model: str = ""

    @property
    def on_time(self) -> bool:
        """Whether it finished by its deadline."""
        return self.outcome == "finish" and self.end_s is not None and self.end_s <= self.deadline_s


@dataclass(frozen=True, slots=True)
class TimelineView:
    """Everything that a picture of a timeline shows."""

    work: tuple[WorkSpan, ...]
    requests: tuple[RequestSpan, ...]

    @property
    def gpus(self) -> tuple[int, ...]:
        """Every rank from 0 to the highest that worked."""
        return tuple(range(max((span.gpu for span in self.work), default=-1) + 1))

    @property
    def start_s(self) -> float:
        """When the first thing shown happens; 0 where nothing does."""
        moments = [span.start_s for span in self.work] + [request.arrival_s for request in self.requests]
        return min(moments, default=0.0)

    @property
    def end_s(self) -> float:
        """When the last thing shown happens: work, an end or a deadline."""
        moments = [span.start_s + span.duration_s for span in self.work]
        moments += [max(request.deadline_s, request.end_s or 0.0) for request in self.requests]
        return max(moments, default=0.0)

    @classmethod
    def load(cls, path: Path) -> "TimelineView":
        """Read a `*.timeline.json` file.

        Raises:
            ValueError: the file is no timeline; the message names it.
            OSError: it cannot be read.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_events(document["traceEvents"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no timeline in the Chrome trace-event format ({error!r})") from error

    @classmethod
    def from_events(cls, events: Sequence[dict[str, Any]]) -> "TimelineView":
        """The view of trace events; requests in order of arrival."""
        work = [_work_span(event) for event in events if event.get("ph") == "X"]
        instants = [event for event in events if event.get("ph") == "i"]
        ends = {str(event["args"]["id"]): event for event in instants if event["name"] in _ENDS}
        requests = [
            _request_span(event, ends.get(str(event["args"]["id"]))) for event in instants if event["name"] == "arrive"
        ]
        return cls(tuple(work), tuple(sorted(requests, key=lambda request: request.arrival_s)))


def _work_span(event: dict[str, Any]) -> WorkSpan:
    args = event["args"]
    return WorkSpan(
        gpu=int(event["tid"]),
        kind=str(event["cat"]),
        request_ids=tuple(str(part["id"]) for part in args["requests"]),
        sp_degree=len(args["gpus"]),
        start_s=event["ts"] / 1e6,
        duration_s=event["dur"] / 1e6,
    )


def _request_span(arrive: dict[str, Any], end: dict[str, Any] | None) -> RequestSpan:
    args = arrive["args"]
    return RequestSpan(
        request_id=str(args["id"]),
        height=int(args["height"]),
        width=int(args["width"]),
        num_steps=int(args["num_inference_steps"]),
        arrival_s=arrive["ts"] / 1e6,
        deadline_s=args["deadline_us"] / 1e6,
        end_s=None if end is None else end["ts"] / 1e6,
        outcome=None if end is None else str(end["name"]),
        model=str(args.get("model", "")),
    )
