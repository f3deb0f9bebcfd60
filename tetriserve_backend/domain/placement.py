"""The ranks that a piece of work runs on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """A set of ranks in ascending order; its size is the degree of parallelism.

    That is the sequence-parallel degree, or twice that where a segment's guidance is split (`Segment.cfg_degree`).

    Raises:
        ValueError: no rank, a negative rank, or ranks not in strictly ascending order.
    """

    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ranks or self.ranks[0] < 0 or any(a >= b for a, b in zip(self.ranks, self.ranks[1:], strict=False)):
            raise ValueError(f"a placement needs ranks in strictly ascending order, got {self.ranks}")

    @property
    def sp_degree(self) -> int:
        """How many ranks share the work."""
        return len(self.ranks)

    @property
    def lead(self) -> int:
        """The rank that reports for the group."""
        return self.ranks[0]
