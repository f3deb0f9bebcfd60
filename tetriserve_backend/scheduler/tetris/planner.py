"""The plan for everything that waits or runs: who is saved, who starts now and how wide, what stays free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.tetris.arrays import (
    NUM_FACTS,
    NUM_FLOATS,
    NUM_INTS,
    Ints,
    Started,
    make_profile,
)
from tetriserve_backend.scheduler.tetris.kernels import (
    copy_profile,
    earliest_end,
    fill_profile,
    leaves_free,
    plan_batches,
    saved_behind,
    take_now,
    try_place,
)
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView

_FIRST_ROOM = 256
_CROWD, _FEWEST_TRIES = 400, 4
"""A packing takes the longer the more requests there are: so many are packed in one plan, all tries together."""
_ROOM_FOR_FACTS, _MOST_GONE = 1024, 256
"""What is known of batches is forgotten when it may be of so many that are gone, and of eight times those here."""
_MARGIN_S = 1e-4
"""What ends this close to a deadline might miss it by a rounding error."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is to be planned.

    Attributes:
        now_s: when the plan begins.
        batches: those that need encodes or steps, in any order; each request in one of them.
        ready: for each, whether its next segment may be sent now.
        idle: ranks that are free now.
        returns_s: when each of the other usable ranks comes back.
    """

    now_s: float
    batches: Sequence[Batch]
    ready: Sequence[bool]
    idle: int
    returns_s: Sequence[float]


class Planner:
    """Plans one situation after another in arrays of its own; the last one stays to be asked about.

    The arrays count from the beginning of the plan: of a clock that has run for months, the last digits are too
    coarse to tell whether the steps of a request end in time.

    Args:
        shapes: what requests cost.
        max_tries: packings per plan, at most; fewer in a crowd.
        candidates: how many of the dearest requests may be given up in turn.
        num_ranks: that are free before the first plan.
    """

    def __init__(self, shapes: ShapeRows, max_tries: int, candidates: int, num_ranks: int) -> None:
        self._shapes, self._effort = shapes, (max_tries, candidates)
        self._left, self._tried = make_profile(_FIRST_ROOM), make_profile(_FIRST_ROOM)
        self._left.free[0], self._left.size[0] = num_ranks, 1
        self._origin_s = 0.0
        # Facts of batches, one row each, and the row of each by its identity; with the batch, so that its id is not
        # given to another. For one version of the costs.
        self._facts = np.empty((_ROOM_FOR_FACTS, NUM_FACTS))
        self._places: dict[int, tuple[int, Batch]] = {}
        self._known_of = shapes.version
        self._start = make_profile(1)
        self._plan = np.empty((NUM_FLOATS, 0)), np.empty((NUM_INTS, 0), np.int64)
        self.rows: list[int] = []
        self.saved: list[bool] = []
        self.first_degree: list[int] = []
        # Both from the beginning of the plan on.
        self._until_s: list[float] = []
        self._end_s: list[float] = []
        self.num_saved, self.gpu_seconds = 0, 0.0
        self.order: list[int] = []

    def plan(self, situation: Situation) -> None:
        """Fill what there is to ask about: `rows`, `order` (by due), and the columns of the packing."""
        count, self._origin_s = len(situation.batches), situation.now_s
        places = self._places_of(situation.batches)
        if len(self._start.times) <= len(situation.returns_s):
            self._start = make_profile(2 * len(situation.returns_s) + 1)
        # Each placement splits the profile at its begin and end, and twice inside; each interval of the start once.
        self._make_room(2 * len(self._start.times) + 4 * count + 8)
        self._plan = np.empty((NUM_FLOATS, count)), np.empty((NUM_INTS, count), np.int64)
        max_tries, candidates = self._effort
        self.num_saved, self.gpu_seconds = plan_batches(
            (self._facts, places),
            # Only now: a new shape may have made the table larger.
            (*self._shapes.table,),
            (situation.idle, np.array(situation.returns_s, float), self._origin_s),
            (min(max_tries, max(_FEWEST_TRIES, _CROWD // max(1, count))), candidates),
            ((*self._start,), (*self._left,), *self._plan),
        )
        self.order, _, self.rows, _, _, self.first_degree = self._plan[1].tolist()
        _, _, _, gpu_seconds, self._until_s, self._end_s = self._plan[0].tolist()
        self.saved = [cost >= 0.0 for cost in gpu_seconds]

    def until_s(self, index: int) -> float:
        """When a request leaves its first degree."""
        return self._until_s[index] + self._origin_s

    def saved_after(self, started: Started) -> int:
        """How many requests the plan still saves, in the same order, behind segments that start now."""
        started = started._replace(ends_s=started.ends_s - self._origin_s)
        return int(saved_behind(self._plan, self._shapes.table, self._start, started))

    def can_spare(self, ranks: int, until_s: float) -> bool:
        """Whether the plan leaves `ranks` free from now until `until_s`."""
        return leaves_free((*self._left,), ranks, until_s - self._origin_s)

    def spend(self, ranks: int, until_s: float) -> None:
        """Take them."""
        self._make_room(int(self._left.size[0]) + 2)
        take_now((*self._left,), ranks, until_s - self._origin_s)

    def forget(self, situation: Situation) -> None:
        """Nothing waits: what is free is what the ranks leave that are busy now."""
        self._left.size[0], self._origin_s = 0, situation.now_s
        self._places.clear()
        self._make_room(len(situation.returns_s) + 1)
        fill_profile(self._left, situation.idle, np.array(situation.returns_s, float), self._origin_s)

    def try_to_add(self, view: RequestView, now_s: float) -> float:
        """GPU-seconds of one more request, from now on, in what the last plan leaves free; inf if it would be late."""
        self._make_room(int(self._left.size[0]) + 16)
        if len(self._tried.times) < len(self._left.times):
            self._tried = make_profile(len(self._left.times))
        batch = Batch((view,))
        row = self._shapes.row(view.request)
        work = (float(view.remaining_steps), *self._shapes.speeds(row))
        due = self._due_s(batch, row) - self._origin_s
        cost, _, _, _ = try_place((*self._left,), (*self._tried,), now_s - self._origin_s, due, work)
        return cost if cost >= 0.0 else math.inf

    def keep_added(self) -> None:
        """Take what the last `try_to_add` would take; it must have succeeded."""
        self._left, self._tried = self._tried, self._left

    def finish_s(self, index: int, situation: Situation) -> float:
        """When a request of the last plan should have its image; a late one as soon as what is left free allows."""
        batch, row = situation.batches[index], self.rows[index]
        end_s = self._end_s[index] + self._origin_s
        if not self.saved[index]:
            ready_s = max(situation.now_s, 0.0 if situation.ready[index] else batch.ready_at_s)
            ready_s -= self._origin_s
            end_s = earliest_end(self._left, ready_s, float(batch.remaining_steps), self._shapes.speeds(row))
            end_s += self._origin_s
        return end_s + batch.request.deadline_s - _MARGIN_S - self._due_s(batch, row)

    def _places_of(self, batches: Sequence[Batch]) -> Ints:
        """Where the facts of each batch are."""
        most = min(len(self._facts), _MOST_GONE + 8 * len(batches))
        if self._known_of != self._shapes.version or len(self._places) + len(batches) > most:
            self._places.clear()
            self._known_of = self._shapes.version
            if 2 * len(batches) > len(self._facts):
                self._facts = np.empty((4 * len(batches), NUM_FACTS))
        known = self._places
        return np.array([(known.get(id(batch)) or self._learn(batch))[0] for batch in batches], np.int64)

    def _learn(self, batch: Batch) -> tuple[int, Batch]:
        row, place = self._shapes.row(batch.request, batch.size), len(self._places)
        self._facts[place] = batch.ready_at_s, self._due_s(batch, row), batch.remaining_steps, row, batch.size
        self._places[id(batch)] = place, batch
        return place, batch

    def _due_s(self, batch: Batch, row: int) -> float:
        return due_s(batch, self._shapes.costs(row), self._shapes.batch_reserve)

    def _make_room(self, intervals: int) -> None:
        # Room for a few more, since the profile takes turns with the one that is tried.
        if intervals > len(self._left.times):
            old, self._left = self._left, make_profile(2 * intervals)
            copy_profile(old, self._left)


def due_s(batch: Batch, costs: ShapeCosts, reserve: float) -> float:
    """When the last step of a batch must end; encodes that are still due are taken off the time left.

    A member that is done before the others is so in time if the steps behind its last one, which take a known
    time at least, end no more than that behind its own deadline.

    Args:
        batch: the batch; one member is the usual case.
        costs: of batches of that size.
        reserve: share of the remaining time of several members that is planned on top.
    """
    if batch.size == 1:
        (member,) = batch.members
        encode_s = costs.encode_s if member.next_kind is SegmentKind.ENCODE else 0.0
        return member.request.deadline_s - costs.decode_s - encode_s - _MARGIN_S
    last = batch.remaining_steps
    around_s = batch.num_encodes * costs.encode_s + batch.size * costs.decode_s + _MARGIN_S
    around_s += reserve * last * costs.fastest.step_s
    ends_s = (m.request.deadline_s + (last - m.remaining_steps) * costs.fastest.step_s for m in batch.members)
    return min(ends_s) - around_s
