"""Which sets of ranks have a process group."""

from collections.abc import Iterator


def aligned_groups(world_size: int) -> Iterator[tuple[int, ...]]:
    """The groups of more than one rank, in the order in which every rank makes them.

    Sizes are powers of two, each group starts at a multiple of its size: with `world_size` a power
    of two there are 2·`world_size` − 1 placements, single ranks included.
    """
    size = 2
    while size <= world_size:
        for first in range(0, world_size - size + 1, size):
            yield tuple(range(first, first + size))
        size *= 2


def usable_degrees(world_size: int, *divisible: int) -> tuple[int, ...]:
    """Degrees that have a group and divide each of `divisible` (heads, text tokens, image tokens), ascending."""
    sizes = {1, *(len(ranks) for ranks in aligned_groups(world_size))}
    return tuple(size for size in sorted(sizes) if all(count % size == 0 for count in divisible))
