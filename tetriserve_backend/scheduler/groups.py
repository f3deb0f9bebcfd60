"""Which sets of ranks may work together, and how many of them a set of free ranks holds."""

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

Ranks: TypeAlias = tuple[int, ...]
"""Ranks in ascending order."""


@lru_cache(maxsize=16)
def aligned_groups(world_size: int) -> dict[int, tuple[Ranks, ...]]:
    """The groups that the executor creates, by size: 2^j ranks starting at a multiple of 2^j.

    Sizes ascend; a world of N = 2^m ranks has 2N − 1 groups. Callers must not change the result.
    """
    groups: dict[int, tuple[Ranks, ...]] = {}
    size = 1
    while size <= world_size:
        starts = range(0, world_size - size + 1, size)
        groups[size] = tuple(tuple(range(start, start + size)) for start in starts)
        size *= 2
    return groups


def whole_groups(world_size: int, size: int, ranks: Iterable[int]) -> list[Ranks]:
    """The groups of `size` that lie inside `ranks` altogether, lowest first."""
    inside = frozenset(ranks)
    return [group for group in aligned_groups(world_size).get(size, ()) if inside.issuperset(group)]


class GroupBudget:
    """How many more groups fit into a set of free ranks, without saying which.

    Because sizes are powers of two and groups are aligned, a set of groups fits if and only if, for every
    size s, its groups of size s and above need no more ranks than the free groups of size s hold: place
    the widest first, and each takes one block that the narrower ones could only have split.
    """

    def __init__(self, world_size: int, free: Iterable[int]) -> None:
        """Count what the `free` ranks hold."""
        inside = frozenset(free)
        self._room = {
            size: size * sum(1 for group in groups if inside.issuperset(group))
            for size, groups in aligned_groups(world_size).items()
        }

    @property
    def free_ranks(self) -> int:
        """Ranks that nobody has taken yet."""
        return self._room.get(1, 0)

    @property
    def widest(self) -> int:
        """The widest group that still fits; 0 if none does."""
        return max((size for size in self._room if self.fits(size)), default=0)

    def fits(self, size: int) -> bool:
        """Whether one more group of `size` fits."""
        return all(room >= size for at, room in self._room.items() if at <= size)

    def take(self, size: int) -> None:
        """Take one group of `size`, which must fit."""
        for at in self._room:
            if at <= size:
                self._room[at] -= size

    def give_back(self, size: int) -> None:
        """Undo one `take(size)`."""
        for at in self._room:
            if at <= size:
                self._room[at] += size
