"""TetriServe's round scheduler: the paper's policy as a whole (§4.2)."""

from collections.abc import Sequence

from tetriserve_backend.domain import Assignment, Placement, Plan, SegmentKind
from tetriserve_backend.scheduler.candidates import RoundWindow, make_candidates
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.groups import GroupBudget
from tetriserve_backend.scheduler.placement import PlacementDemand, place
from tetriserve_backend.scheduler.round_batches import RoundBatcher
from tetriserve_backend.scheduler.round_length import round_length_s
from tetriserve_backend.scheduler.round_plan import plan_round
from tetriserve_backend.scheduler.scale_up import Share
from tetriserve_backend.scheduler.stages import batch_chain, chain
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s

_TOLERANCE_S = 1e-9


class RoundPolicy:
    """Plans the whole world once per round of τ seconds, and ranks that are idle before its end.

    At a boundary every free rank is divided anew: allocation, packing, batches, best effort, scale-up, placement.
    What a round sends ends with the decode of each request that has no steps left. With scale-up, a rank that is idle
    before the boundary gets what fits into the rest of the round, in the same way. Otherwise it encodes arrivals, so
    that they start the next round with their first step. When all ranks are idle a round starts at once.

    A boundary is put off by up to `boundary_grace` of a round for ranks that are just about to finish, and
    a round starts later still, with the first request that is ready, where nobody could use it.

    Args:
        settings: see `SchedulerSettings`.
        model: what shapes cost; τ follows from its profiled resolutions (`round_length_s`).
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel) -> None:
        self._settings, self._model = settings, model
        self._batcher = RoundBatcher(model, settings.max_batch)
        self._fit_round()
        self._round_end_s = float("-inf")

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
        due = self._round_is_due(view, free, now_s)
        ready = [request for request in view.requests if view.is_ready(request, now_s)]
        assignments = _decode(ready, free)
        ready = [request for request in ready if request.next_kind is not SegmentKind.DECODE]
        ends_s: list[float] = []
        if free and ready and (due or self._settings.elastic_scale_up):
            start_s = max(now_s, *(rank.free_at_s for rank in view.ranks if rank.rank in free))
            window = self._window(start_s, due)
            shares = plan_round(
                make_candidates(ready, self._model, window),
                GroupBudget(view.world_size, free),
                self._settings,
                self._batcher,
            )
            if due and shares:
                self._round_end_s = window.end_s
            for share, placement in self._place(shares, view, free):
                assignments += batch_chain(share.batch, placement, share.num_steps)
                ends_s.append(start_s + share.costs.batch_chain_s(share.batch, share.sp_degree, share.num_steps))
                for request in share.batch.members:
                    ready.remove(request)
                free.difference_update(placement.ranks)
        assignments += self._encode_ahead(ready, free, now_s)
        wake_at_s = next_wake_s(view, now_s, [*ends_s, self._round_end_s], with_ranks=True)
        return Plan(tuple(assignments), wake_at_s)

    def _fit_round(self) -> None:
        self._fitted_version = self._model.version
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
        return not any(horizon_s < rank.free_at_s <= limit_s for rank in view.ranks)

    def _window(self, start_s: float, due: bool) -> RoundWindow:
        """The next round from there, or what is left of this one: no rank idles in it while someone can use it."""
        if due:
            return RoundWindow(start_s, self._round_length_s)
        return RoundWindow(start_s, self._round_end_s - start_s, is_rest=True)

    def _place(self, shares: Sequence[Share], view: SchedulerView, free: set[int]) -> list[tuple[Share, Placement]]:
        preserve = self._settings.placement_preservation
        demands = [
            PlacementDemand(batch.request.request_id, share.sp_degree, batch.placement if preserve else None)
            for share in shares
            for batch in (share.batch,)
        ]
        placed = place(demands, view.world_size, free)
        return [(share, placed[share.batch.request.request_id]) for share in shares]

    def _encode_ahead(self, ready: Sequence[RequestView], free: set[int], now_s: float) -> list[Assignment]:
        """Encode on ranks that idle until the boundary; not where the encode would outlast it."""
        assignments = []
        for request in ready:
            in_time = now_s + self._model.of(request.request).encode_s <= self._round_end_s
            if free and in_time and request.next_kind is SegmentKind.ENCODE:
                rank = min(free)
                free.remove(rank)
                ids = (request.request.request_id,)
                assignments.append(Assignment(SegmentKind.ENCODE, ids, Placement((rank,))))
        return assignments


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
