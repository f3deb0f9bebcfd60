"""Which sets of ranks have a process group, and which degrees the executor can run."""

from tetriserve_backend.domain import Segment
from tetriserve_backend.scheduler.groups import aligned_groups


def shared_groups(world_size: int) -> list[tuple[int, ...]]:
    """The groups of more than one rank, in the order in which every rank makes them: small ones first."""
    return [ranks for size, groups in aligned_groups(world_size).items() if size > 1 for ranks in groups]


def usable_degrees(world_size: int, *divisible: int) -> tuple[int, ...]:
    """Degrees that have a group and divide each of `divisible` (heads, text tokens, image tokens), ascending."""
    return tuple(size for size in aligned_groups(world_size) if all(count % size == 0 for count in divisible))


def pass_groups(segment: Segment) -> tuple[tuple[int, ...], ...]:
    """The ranks that share each forward pass: all, or where guidance is split the unconditional and the other half."""
    ranks = segment.placement.ranks
    if segment.cfg_degree == 1:
        return (ranks,)
    half = len(ranks) // 2
    return ranks[:half], ranks[half:]


def used_groups(segment: Segment) -> frozenset[tuple[int, ...]]:
    """Every group of more than one rank in which the ranks of a segment communicate."""
    return frozenset(ranks for ranks in (segment.placement.ranks, *pass_groups(segment)) if len(ranks) > 1)
