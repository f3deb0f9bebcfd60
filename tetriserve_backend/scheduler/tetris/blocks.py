"""The aligned groups of consecutive ranks as bit masks: which are whole, and what taking one breaks up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tetriserve_backend.domain import Placement
from tetriserve_backend.scheduler.groups import aligned_groups


def mask_of(ranks: Iterable[int]) -> int:
    """The number whose bit `r` is set for each rank `r`."""
    mask = 0
    for rank in ranks:
        mask |= 1 << rank
    return mask


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """An aligned group.

    Attributes:
        placement: its ranks.
        mask: the same as bits.
        around: for each larger size, ascending, the mask of the group that it is a part of, or would be if there were
            so many ranks.
    """

    placement: Placement
    mask: int
    around: tuple[int, ...]


class Blocks:
    """All aligned groups inside consecutive ranks that begin at a multiple of the largest size.

    Args:
        ranks: consecutive.
    """

    def __init__(self, ranks: range) -> None:
        sizes = aligned_groups(len(ranks))
        self._by_size = {
            size: tuple(
                Block(
                    Placement(tuple(rank + ranks.start for rank in group)),
                    mask_of(group) << ranks.start,
                    tuple(
                        mask_of(range(other)) << (group[0] // other * other + ranks.start)
                        for other in sizes
                        if other > size
                    ),
                )
                for group in groups
            )
            for size, groups in sizes.items()
        }

    def of_size(self, size: int) -> tuple[Block, ...]:
        """The groups of `size` ranks, lowest first; none if there is no such size."""
        return self._by_size.get(size, ())

    def choose(self, size: int, idle: int, own: int, others: int, slowness: Mapping[int, float]) -> Block | None:
        """The best group of `size` idle ranks; None if no group is idle as a whole.

        First choice is a group without slow ranks, then one that breaks up the least: a wide request must not wait
        because a narrow one sits in the middle of an empty block, unless a slow rank makes that of little use. Then
        where the request was, then where no other request was.

        Args:
            size: how many ranks.
            idle: mask of those that are idle.
            own: mask of the request's last ranks.
            others: mask of other requests' last ranks.
            slowness: of ranks that are not as quick as the others (`RankView.slowness`).
        """
        whole = idle & ~mask_of(slowness) if slowness else idle
        best: Block | None = None
        least: tuple[float, int, int, int] | None = None
        for block in self._by_size.get(size, ()):
            mask = block.mask
            if mask & idle != mask:
                continue
            broken = 0
            for larger in block.around:
                broken = 2 * broken + (larger & whole == larger)
            slowest = max(slowness.get(rank, 1.0) for rank in block.placement.ranks) if slowness else 1.0
            badness = (slowest, broken, -(own & mask).bit_count(), (others & mask).bit_count())
            if least is None or badness < least:
                best, least = block, badness
        return best
