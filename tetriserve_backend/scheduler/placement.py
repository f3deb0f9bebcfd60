"""Which ranks each width gets: where the request was, if that can be (§4.2.3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import Placement
from tetriserve_backend.scheduler.groups import Ranks, whole_groups


@dataclass(frozen=True, slots=True)
class PlacementDemand:
    """A request that needs a group of `sp_degree` ranks; `previous` is where it was, None if anywhere is as good."""

    request_id: str
    sp_degree: int
    previous: Placement | None


def place(demands: Sequence[PlacementDemand], world_size: int, free: Iterable[int]) -> dict[str, Placement]:
    """Give each demand an aligned group of its own; the demands must fit (`GroupBudget`).

    Widest first, so that narrow ones never break up a block that a wide one needs. Each takes the group
    that shares most ranks with where it was, and among equals the one that disturbs others' ranks least.
    """
    left = set(free)
    waiting = sorted(range(len(demands)), key=lambda index: (-demands[index].sp_degree, index))
    placed: dict[str, Placement] = {}
    for position, index in enumerate(waiting):
        demand = demands[index]
        others = [demands[later].previous for later in waiting[position + 1 :]]
        wanted = {rank for previous in others if previous is not None for rank in previous.ranks}
        own = set(demand.previous.ranks) if demand.previous is not None else set()

        def badness(group: Ranks, own: set[int] = own, wanted: set[int] = wanted) -> tuple[int, int, int]:
            return -len(own.intersection(group)), len(wanted.intersection(group)), group[0]

        group = min(whole_groups(world_size, demand.sp_degree, left), key=badness)
        left.difference_update(group)
        placed[demand.request_id] = Placement(group)
    return placed
