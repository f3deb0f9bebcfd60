"""Selective continuous batching in a round: requests of one shape and degree run as one batch (§5)."""

from collections import defaultdict
from collections.abc import Sequence

from tetriserve_backend.scheduler.candidates import in_batch
from tetriserve_backend.scheduler.costs import CostModel, ShapeCosts
from tetriserve_backend.scheduler.groups import GroupBudget
from tetriserve_backend.scheduler.scale_up import Share


class RoundBatcher:
    """Merges shares of a round where the table says that a batch takes less time than its images one by one.

    Args:
        model: what batches cost.
        max_batch: most requests of a batch; 1 merges nothing.
    """

    def __init__(self, model: CostModel, max_batch: int) -> None:
        self._model, self._max_batch = model, max_batch

    def merge(self, shares: Sequence[Share], budget: GroupBudget) -> list[Share]:
        """Put requests together that all still survive, each time those with the nearest deadlines.

        A batch keeps one of its members' groups; the others go back to `budget`. Batches that exist stay as they are.
        """
        if self._max_batch == 1:
            return list(shares)
        merged: list[Share] = []
        alike: dict[tuple[str, int, int, int], list[Share]] = defaultdict(list)
        for share in shares:
            if share.batch.size > 1 or share.batch.members[0].runs_alone:
                merged.append(share)
            else:
                request = share.batch.request
                alike[request.model, request.height, request.width, share.sp_degree].append(share)
        for same in alike.values():
            same.sort(key=lambda share: share.batch.request.deadline_s)
            merged += self._merge_alike(same)
        for share in shares:
            budget.give_back(share.sp_degree)
        for share in merged:
            budget.take(share.sp_degree)
        return merged

    def _merge_alike(self, waiting: list[Share]) -> list[Share]:
        request, sp_degree = waiting[0].batch.request, waiting[0].sp_degree
        shape = (request.height, request.width, request.model)
        sizes = self._model.batch_sizes_at(sp_degree, *shape) if len(waiting) > 1 else ()
        costs_of = {size: self._model.of_shape(*shape, size) for size in sizes if size <= self._max_batch}
        merged: list[Share] = []
        while waiting:
            tried = (_first(waiting, size, costs) for size, costs in costs_of.items())
            share = next((share for share in tried if share is not None), waiting[0])
            merged.append(share)
            gone = set(share.batch.request_ids)
            waiting = [other for other in waiting if gone.isdisjoint(other.batch.request_ids)]
        return merged


def _first(waiting: Sequence[Share], size: int, costs: ShapeCosts) -> Share | None:
    """The first request with the next ones that can go along; None if there are not enough."""
    members, joined = [waiting[0]], None
    for other in waiting[1:]:
        share = _join([*members, other], costs)
        if share is not None:
            members.append(other)
            joined = share
        if len(members) == size:
            return joined
    return None


def _join(members: Sequence[Share], costs: ShapeCosts) -> Share | None:
    """One share of several; None where somebody would not survive it or the ranks would do fewer steps for it.

    A batch runs until the first of its members is done, so one with few steps left would have the others
    idle for the rest of the round.
    """
    sp_degree = members[0].sp_degree
    joined = Share(tuple(in_batch([share.candidates[0] for share in members], costs, sp_degree)), sp_degree, 0)
    joined.num_steps = min(joined.steps_at(sp_degree), *(share.num_steps for share in members))
    steps_alone = sum(share.num_steps for share in members) / len(members)
    does_more = len(members) * joined.num_steps > steps_alone
    survive = all(candidate.survives(joined.num_steps, sp_degree) for candidate in joined.candidates)
    return joined if does_more and survive else None
