"""TetriServe's round scheduler: the paper's policy as a whole (§4.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import Assignment, Placement, Plan, SegmentKind
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.candidates import RoundWindow
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel, ShapeCosts
from tetriserve_backend.scheduler.foresight import Foresight
from tetriserve_backend.scheduler.round_length import round_length_s
from tetriserve_backend.scheduler.round_plan import RoundPlanner
from tetriserve_backend.scheduler.stages import batch_chain, chain
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s

_TOLERANCE_S = 1e-9


@dataclass(slots=True)
class _Turn:
    """One call of `plan`: what may still be planned, and what is; owned by that call.

    Attributes:
        free: ranks without work.
        ready: requests that need their encode or steps and may have them, in order of arrival.
        assignments: what the plan sends.
        ends_s: when it should end, share by share.
    """

    free: set[int]
    ready: list[RequestView]
    assignments: list[Assignment]
    ends_s: list[float]

    def send(self, batch: Batch, costs: ShapeCosts, placement: Placement, num_steps: int, start_s: float) -> None:
        """Plan steps of a batch with what they bring along."""
        self.assignments += batch_chain(batch, placement, num_steps)
        self.ends_s.append(start_s + costs.batch_chain_s(batch, placement.sp_degree, num_steps))
        for request in batch.members:
            self.ready.remove(request)
        self.free.difference_update(placement.ranks)


class RoundPolicy:
    """Plans the whole world once per round of τ seconds, and ranks that are idle before its end.

    At a boundary every free rank is divided anew: allocation, packing, batches, best effort, scale-up, placement.
    What a round sends ends with the decode of each request that has no steps left. With scale-up, a rank that is idle
    before the boundary gets what fits into the rest of the round, in the same way. Otherwise it encodes arrivals, so
    that they start the next round with their first step. A request for which no step fits, but which the next round
    would keep on its ranks, goes on there at once, by one step that ends at most `boundary_overrun` of a round behind
    the boundary. When all ranks are idle a round starts at once.

    A boundary is put off by up to `boundary_grace` of a round for ranks that are just about to finish, other than
    those that go on across it, and a round starts later still, with the first request that is ready, where nobody
    could use it.

    Args:
        settings: see `SchedulerSettings`.
        model: what shapes cost; τ follows from its profiled resolutions (`round_length_s`).
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel) -> None:
        self._settings, self._model = settings, model
        self._planner = RoundPlanner(settings, model)
        self._foresight = Foresight(self._planner)
        self._fit_round()
        self._round_end_s = float("-inf")
        self._overrunning: set[int] = set()

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""
        return "tetriserve"

    @property
    def round_length_s(self) -> float:
        """τ, the length of a round in seconds."""
        return self._round_length_s

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """The next round at its boundary; between two boundaries, what fits there and what cannot wait."""
        if self._fitted_version != self._model.version:
            self._fit_round()
        free = set(view.available_ranks(now_s))
        self._overrunning -= free
        due = self._round_is_due(view, free, now_s)
        ready = [request for request in view.requests if view.is_ready(request, now_s)]
        assignments = _decode(ready, free)
        ready = [request for request in ready if request.next_kind is not SegmentKind.DECODE]
        turn = _Turn(free, ready, assignments, [])
        if due or self._settings.elastic_scale_up:
            self._divide(view, turn, now_s, due=due)
        self._encode_ahead(turn, now_s)
        if not due and self._settings.elastic_scale_up:
            self._go_on(view, turn, now_s)
        wake_at_s = next_wake_s(view, now_s, [*turn.ends_s, self._round_end_s], with_ranks=True)
        return Plan(tuple(turn.assignments), wake_at_s)

    def _fit_round(self) -> None:
        self._fitted_version = self._model.version
        self._foresight.forget()
        shapes = self._model.profiled()
        # A server whose models are still to come has no rounds.
        self._round_length_s = round_length_s(shapes, self._settings.step_granularity) if shapes else 0.0

    def _round_is_due(self, view: SchedulerView, free: set[int], now_s: float) -> bool:
        horizon_s = now_s + view.lead_s
        if len(free) == len(view.ranks):
            return True
        if horizon_s < self._round_end_s - _TOLERANCE_S:
            return False
        limit_s = self._round_end_s + self._settings.boundary_grace * self._round_length_s
        return not any(
            horizon_s < rank.free_at_s <= limit_s and rank.rank not in self._overrunning for rank in view.ranks
        )

    def _divide(self, view: SchedulerView, turn: _Turn, now_s: float, *, due: bool) -> None:
        """The free ranks: for the next round, or for what is left of this one."""
        if not turn.free or not turn.ready:
            return
        start_s = max(now_s, *(rank.free_at_s for rank in view.ranks if rank.rank in turn.free))
        if due:
            window = RoundWindow(start_s, self._round_length_s)
        else:
            window = RoundWindow(start_s, self._round_end_s - start_s, is_rest=True)
        placed = self._planner.divide(turn.ready, turn.free, view.world_size, window)
        if due and placed:
            self._round_end_s = window.end_s
            self._foresight.forget()
        for one in placed:
            share = one.share
            turn.send(share.batch, share.costs, one.placement, share.num_steps, start_s)

    def _encode_ahead(self, turn: _Turn, now_s: float) -> None:
        """Encode on ranks that idle until the boundary; not where the encode would outlast it."""
        for request in tuple(turn.ready):
            costs = self._model.of(request.request)
            in_time = now_s + costs.encode_s <= self._round_end_s
            if turn.free and in_time and request.next_kind is SegmentKind.ENCODE:
                turn.send(Batch((request,)), costs, Placement((min(turn.free),)), 0, now_s)

    def _go_on(self, view: SchedulerView, turn: _Turn, now_s: float) -> None:
        """One step each of those whom the next round would keep on ranks that idle until it begins.

        A rank that should be another request's then, or part of a wider group, waits for it.
        """
        boundary_s = max(now_s, self._round_end_s)
        latest_s = boundary_s + self._settings.boundary_overrun * self._round_length_s
        able = self._able_to_go_on(turn, latest_s - now_s)
        if not able:
            return
        window = RoundWindow(boundary_s, self._round_length_s)
        near_s = boundary_s + self._settings.boundary_grace * self._round_length_s
        seats = self._foresight.seats(view, turn.assignments, window, until_s=near_s)
        for seat in [seats[request_id] for request_id in able if request_id in seats]:
            members = tuple(able[request_id] for request_id in seat.request_ids if request_id in able)
            stay = len(members) == len(seat.request_ids) and all(one.placement == seat.placement for one in members)
            # Of a batch, the first member has seen to it.
            if not stay or not turn.free.issuperset(seat.placement.ranks):
                continue
            batch = Batch(members)
            may_share = batch.size == 1 or not any(member.runs_alone for member in members)
            ends_s = now_s + seat.costs.batch_chain_s(batch, seat.placement.sp_degree, 1)
            if may_share and ends_s <= latest_s:
                turn.send(batch, seat.costs, seat.placement, 1, now_s)
                self._overrunning.update(seat.placement.ranks)

    def _able_to_go_on(self, turn: _Turn, room_s: float) -> dict[str, RequestView]:
        """Requests, by id, whose last ranks are idle and could do a step of theirs within `room_s`."""
        return {
            request.request.request_id: request
            for request in turn.ready
            if (at := request.placement) is not None
            and request.next_kind is SegmentKind.DENOISE
            and turn.free.issuperset(at.ranks)
            and self._model.of(request.request).step_s.get(at.sp_degree, math.inf) <= room_s
        }


def _decode(ready: Sequence[RequestView], free: set[int]) -> list[Assignment]:
    """Decodes that are due by themselves (theirs was lost with its rank): at once, on any free rank."""
    assignments: list[Assignment] = []
    for request in ready:
        if request.next_kind is SegmentKind.DECODE and free:
            held = set(request.placement.ranks) & free if request.placement is not None else set()
            rank = min(held or free)
            free.remove(rank)
            assignments += chain(request, Placement((rank,)), 0)
    return assignments
