"""Which sets of ranks have a process group, and which degrees the executor can run."""

from tetriserve_backend.scheduler.groups import aligned_groups


def shared_groups(world_size: int) -> list[tuple[int, ...]]:
    """The groups of more than one rank, in the order in which every rank makes them: small ones first."""
    return [ranks for size, groups in aligned_groups(world_size).items() if size > 1 for ranks in groups]


def usable_degrees(world_size: int, *divisible: int) -> tuple[int, ...]:
    """Degrees that have a group and divide each of `divisible` (heads, text tokens, image tokens), ascending."""
    return tuple(size for size in aligned_groups(world_size) if all(count % size == 0 for count in divisible))
