"""The plan for everything that waits or runs: who is saved, who starts now and how wide, what stays free."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.scheduler.tetris.packing import choose
from tetriserve_backend.scheduler.tetris.profile import Floats, Ints, is_free, take
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView

_FIRST_ROOM = 256
_MARGIN_S = 1e-4
"""What ends this close to a deadline might miss it by a rounding error."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is to be planned.

    Attributes:
        now_s: when the plan begins.
        requests: those that need an encode or steps, in any order.
        ready: for each, whether its next segment may be sent now.
        idle: ranks that are free now.
        returns_s: when each of the other usable ranks comes back.
    """

    now_s: float
    requests: Sequence[RequestView]
    ready: Sequence[bool]
    idle: int
    returns_s: Sequence[float]


class Planner:
    """Plans one situation after another in arrays of its own; keeps nothing else between them.

    Args:
        shapes: what requests cost.
        max_tries: packings per plan, at most.
        candidates: how many of the dearest requests may be given up in turn.
    """

    def __init__(self, shapes: ShapeRows, max_tries: int, candidates: int) -> None:
        self._shapes, self._max_tries, self._candidates = shapes, max_tries, candidates
        self._times: Floats = np.zeros(_FIRST_ROOM)
        self._free: Ints = np.zeros(_FIRST_ROOM, np.int64)
        self._length = 0
        self.rows: list[int] = []
        self.saved: list[bool] = []
        self.first_degree: list[int] = []
        self.end_s: list[float] = []
        self.order: list[int] = []

    def plan(self, situation: Situation) -> None:
        """Fill `saved`, `first_degree`, `end_s` (of the last step), `rows` and `order` (deadlines first)."""
        shapes, now_s, requests = self._shapes, situation.now_s, situation.requests
        count = len(requests)
        self.rows = [shapes.row(view.request) for view in requests]
        ready_s = np.array(
            [
                now_s if ready else max(view.ready_at_s, now_s)
                for view, ready in zip(requests, situation.ready, strict=True)
            ]
        )
        due_s = np.array([self._due_s(view, row) for view, row in zip(requests, self.rows, strict=True)])
        steps = np.array([float(view.remaining_steps) for view in requests])
        rows = np.array(self.rows, np.int64)
        fastest = shapes.rates[rows, shapes.num_degrees[rows] - 1]
        left_out = due_s - ready_s - steps / fastest < -1e-9
        order = np.argsort(due_s, kind="stable")
        times, free = _profile(now_s, situation.idle, situation.returns_s)
        # Each placement splits the profile at most three times, and each of its intervals once.
        self._make_room(len(times) + 4 * count + 8 + len(times))
        gpu_seconds, first_degree, end_s = np.zeros(count), np.zeros(count, np.int64), np.zeros(count)
        self._length = choose(
            order, left_out, times, free, ready_s, due_s, steps, rows,
            shapes.degrees, shapes.rates, shapes.num_degrees,
            gpu_seconds, first_degree, end_s, self._times, self._free, self._max_tries, self._candidates,
        )  # fmt: skip
        self.saved, self.first_degree = (gpu_seconds >= 0.0).tolist(), first_degree.tolist()
        self.end_s, self.order = end_s.tolist(), order.tolist()

    def can_spare(self, ranks: int, until_s: float) -> bool:
        """Whether the plan leaves `ranks` free from now until `until_s`."""
        return is_free(self._times, self._free, self._length, ranks, until_s)

    def spend(self, ranks: int, until_s: float) -> None:
        """Take them."""
        self._make_room(self._length + 2)
        self._length = take(self._times, self._free, self._length, ranks, self._times[0], until_s)

    def _due_s(self, view: RequestView, row: int) -> float:
        """When the last step must end; an encode that is still due is taken off the time left."""
        costs = self._shapes.costs(row)
        encode_s = costs.encode_s if view.next_kind is SegmentKind.ENCODE else 0.0
        return view.request.deadline_s - costs.decode_s - encode_s - _MARGIN_S

    def _make_room(self, intervals: int) -> None:
        if intervals > len(self._times):
            room = np.zeros(2 * intervals)
            room[: self._length] = self._times[: self._length]
            free = np.zeros(2 * intervals, np.int64)
            free[: self._length] = self._free[: self._length]
            self._times, self._free = room, free


def _profile(now_s: float, idle: int, returns_s: Sequence[float]) -> tuple[Floats, Ints]:
    moments = np.unique(np.maximum(np.array(returns_s, float), now_s)) if len(returns_s) else np.zeros(0)
    back = np.searchsorted(np.sort(np.maximum(np.array(returns_s, float), now_s)), moments, side="right")
    if len(moments) and moments[0] <= now_s:
        return moments, idle + back.astype(np.int64)
    return np.concatenate([[now_s], moments]), np.concatenate([[idle], idle + back]).astype(np.int64)
