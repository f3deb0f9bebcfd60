"""Which ranks can take work: losing some, loading new workers for them, forming the groups anew."""


class WorldState:
    """The ranks of the world and how whole it is.

    A lost rank is out until the world is formed anew. Forming needs every rank, so it waits until each
    lost rank has a loaded worker and no segment is in flight.
    """

    def __init__(self, world_size: int) -> None:
        self.size = world_size
        self._usable = set(range(world_size))
        self._usable_ranks = tuple(range(world_size))
        self._lost: set[int] = set()
        self._loaded: set[int] = set()
        self.is_forming = False

    @property
    def usable_ranks(self) -> tuple[int, ...]:
        """Ranks that can take work now, ascending."""
        if len(self._usable_ranks) != len(self._usable):
            self._usable_ranks = tuple(sorted(self._usable))
        return self._usable_ranks

    @property
    def is_whole(self) -> bool:
        """Every rank is there, and in its groups."""
        return not self._lost

    @property
    def waits_to_form(self) -> bool:
        """Every lost rank has a loaded worker: start nothing new, form the groups once nothing runs."""
        return bool(self._lost) and self._lost <= self._loaded and not self.is_forming

    def is_usable(self, rank: int) -> bool:
        """Whether `rank` exists and can take work."""
        return rank in self._usable

    def lose(self, rank: int) -> None:
        """A rank died or left its groups."""
        self._usable.discard(rank)
        self._lost.add(rank)
        self._loaded.discard(rank)
        if self.is_forming:
            # The groups were half built when the rank went: none can be used before the next try.
            self.is_forming = False
            self._usable.clear()

    def load(self, rank: int) -> None:
        """A lost rank has a worker again, with its model loaded."""
        self._loaded.add(rank)

    def form(self) -> None:
        """The groups are being built."""
        self.is_forming = True

    def formed(self, ranks: tuple[int, ...]) -> None:
        """The groups exist; these ranks are usable."""
        self.is_forming = False
        self._lost.clear()
        self._loaded.clear()
        self._usable = set(ranks)
        self._usable_ranks = tuple(sorted(ranks))
