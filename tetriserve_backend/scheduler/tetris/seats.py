"""Which aligned group each job gets."""

from collections.abc import Iterable

from tetriserve_backend.domain import Placement
from tetriserve_backend.scheduler.groups import Ranks, aligned_groups, whole_groups


def seat(
    world_size: int, idle: set[int], sp_degree: int, previous: Placement | None, elsewhere: Iterable[Placement | None]
) -> Placement | None:
    """An aligned group of `sp_degree` idle ranks, which are taken out of `idle`; None if there is none.

    First choice is a group that breaks up the least: a wide request must not wait because a narrow one sits
    in the middle of an empty block. Then where the request was, then where no other request was.
    """
    groups = whole_groups(world_size, sp_degree, idle)
    if not groups:
        return None
    own = set(previous.ranks) if previous is not None else set()
    others = {rank for placement in elsewhere if placement is not None for rank in placement.ranks}

    def badness(group: Ranks) -> tuple[int, int, int, int]:
        return (
            _blocks_broken(world_size, group, idle),
            -len(own.intersection(group)),
            len(others.intersection(group)),
            group[0],
        )

    chosen = min(groups, key=badness)
    idle.difference_update(chosen)
    return Placement(chosen)


def _blocks_broken(world_size: int, group: Ranks, idle: set[int]) -> int:
    """Whole idle blocks around `group` that it would break up; the smaller ones count more."""
    broken = 0
    for size in aligned_groups(world_size):
        if size > len(group):
            start = group[0] // size * size
            whole = start + size <= world_size and idle.issuperset(range(start, start + size))
            broken = 2 * broken + whole
    return broken
