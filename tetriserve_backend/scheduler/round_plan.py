"""Who runs in a round, and on how many ranks: packing, best effort and scale-up put together (§4.2)."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from tetriserve_backend.domain import Placement
from tetriserve_backend.scheduler.candidates import Candidate, RoundWindow, make_candidates
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.groups import GroupBudget
from tetriserve_backend.scheduler.packing import pack_options
from tetriserve_backend.scheduler.placement import PlacementDemand, place
from tetriserve_backend.scheduler.round_batches import RoundBatcher
from tetriserve_backend.scheduler.scale_up import Share, scale_up
from tetriserve_backend.scheduler.view import RequestView


@dataclass(frozen=True, slots=True)
class PlacedShare:
    """A share of a round and the ranks that it is on."""

    share: Share
    placement: Placement


class RoundPlanner:
    """Divides ranks among requests for a slice of time: who, on how many ranks, and which.

    Args:
        settings: see `SchedulerSettings`.
        model: what shapes cost.
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel) -> None:
        self._settings, self._model = settings, model
        self._batcher = RoundBatcher(model, settings.max_batch)

    def divide(
        self, requests: Iterable[RequestView], ranks: Set[int], world_size: int, window: RoundWindow
    ) -> list[PlacedShare]:
        """Shares of at least one step each, on `ranks` alone, which are free at the window's start.

        Requests stay where they were as far as they can, if the settings say so (§4.2.3).

        Args:
            requests: that may run, in order of arrival, each as it is at the window's start.
            ranks: to divide.
            world_size: ranks of the whole world.
            window: the time that is planned.
        """
        candidates = make_candidates(requests, self._model, window)
        shares = plan_round(candidates, GroupBudget(world_size, ranks), self._settings, self._batcher)
        preserve = self._settings.placement_preservation
        demands = [
            PlacementDemand(batch.request.request_id, share.sp_degree, batch.placement if preserve else None)
            for share in shares
            for batch in (share.batch,)
        ]
        placed = place(demands, world_size, ranks)
        return [PlacedShare(share, placed[share.batch.request.request_id]) for share in shares]


def plan_round(
    candidates: Sequence[Candidate], budget: GroupBudget, settings: SchedulerSettings, batcher: RoundBatcher
) -> list[Share]:
    """Divide the free ranks of a round.

    1. The request that is late beyond `late_limit_s`, if any, gets a rank first: the guard against starving.
    2. Packing: most survivors among the requests that are not late (§4.2.2). Those of one shape and degree are
       merged into batches (§5), and what the packing left out is packed again onto the ranks that this frees.
    3. With scale-up, requests that the packing left out take ranks that are still free, least slack first.
    4. Best effort: late requests take one rank each of what is left, earliest deadline first.
    5. Scale-up doubles degrees while ranks are free (§4.2.3).

    Args:
        candidates: requests that may run, in order of arrival.
        budget: the free ranks; what the shares need is taken from it.
        settings: `elastic_scale_up` and `late_limit_s` count here.
        batcher: merges requests.

    Returns:
        The shares, each of at least one step.
    """
    on_time = [candidate for candidate in candidates if not candidate.is_late]
    late = sorted((c for c in candidates if c.is_late), key=lambda c: c.request.request.deadline_s)
    first = late[:1] if late and _is_starving(late[0], settings) else []
    shares = _best_effort(first, budget)
    outlasting = list(shares)
    shares += _pack(on_time, budget, settings, batcher)
    rest = _best_effort(late[len(first) :], budget)
    shares += rest
    if settings.elastic_scale_up:
        scale_up(shares, budget)
    if not on_time:
        outlasting += rest
    for share in outlasting:
        # One step is longer than the round: rather than never, it runs on into the next round. Not beside
        # requests that can still make it, because there the rank would be missed; nor from the rest of a round.
        if not share.num_steps and not share.window.is_rest:
            share.num_steps = 1
    return [share for share in shares if share.num_steps]


def _is_starving(candidate: Candidate, settings: SchedulerSettings) -> bool:
    lateness_s = candidate.window.start_s - candidate.request.request.deadline_s
    return settings.late_limit_s is not None and lateness_s >= settings.late_limit_s


def _best_effort(late: Sequence[Candidate], budget: GroupBudget) -> list[Share]:
    """One rank each while there are any; no steps yet where one step is longer than the round."""
    shares = []
    for candidate in late[: budget.free_ranks]:
        budget.take(1)
        shares.append(Share((candidate,), 1, candidate.steps_at(1)))
    return shares


def _pack(
    on_time: Sequence[Candidate], budget: GroupBudget, settings: SchedulerSettings, batcher: RoundBatcher
) -> list[Share]:
    """Shares of the requests that can still make it."""
    packed, left_out = _choose(on_time, budget, settings)
    shares = batcher.merge(packed, budget)
    while left_out and len(shares) < len(packed):
        more, left_out = _choose(left_out, budget, settings)
        packed = shares + more
        shares = batcher.merge(packed, budget)
    if settings.elastic_scale_up:
        shares += _fill(left_out, budget)
    return shares


def _choose(
    on_time: Sequence[Candidate], budget: GroupBudget, settings: SchedulerSettings
) -> tuple[list[Share], list[Candidate]]:
    """Shares by the knapsack, and whom it left out."""
    widest = budget.widest
    chosen = pack_options([candidate.pack_item(widest) for candidate in on_time], budget.free_ranks)
    # The knapsack counts ranks. Where lost or busy ranks break up the world, its choice may not fit as
    # groups: widest first keeps most of it.
    order = sorted(zip(on_time, chosen, strict=True), key=lambda pair: -pair[1].sp_degree if pair[1] else 0)
    shares: list[Share] = []
    left_out: list[Candidate] = []
    for candidate, option in order:
        if option is None or not budget.fits(option.sp_degree):
            left_out.append(candidate)
            continue
        budget.take(option.sp_degree)
        # The ranks are taken until the boundary: with scale-up, further steps use the rest of the round.
        num_steps = candidate.steps_at(option.sp_degree) if settings.elastic_scale_up else option.num_steps
        shares.append(Share((candidate,), option.sp_degree, num_steps))
    return shares, left_out


def _fill(left_out: Sequence[Candidate], budget: GroupBudget) -> list[Share]:
    shares = []
    for candidate in sorted(left_out, key=lambda candidate: candidate.slack_s):
        if not budget.free_ranks:
            break
        degree = next(degree for degree, steps in candidate.max_steps.items() if steps)
        if budget.fits(degree):
            budget.take(degree)
            shares.append(Share((candidate,), degree, candidate.steps_at(degree)))
    return shares
