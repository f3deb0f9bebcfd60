"""Having all ranks form the groups of one generation together."""

import time
from collections.abc import Callable, Iterable

from tetriserve_backend.executor import wire


class WorldForming:
    """Knows which ranks are not done yet, and until when they must be.

    Args:
        send: sends a message to a rank.
        limit_s: how long forming may take.
    """

    def __init__(self, send: Callable[[int, wire.Message], None], limit_s: float) -> None:
        self._send, self._limit_s = send, limit_s
        self._generation = 0
        self._unformed: set[int] = set()
        self._deadline_s = 0.0

    def begin(self, ranks: Iterable[int]) -> None:
        """Have these ranks leave their groups and make them anew."""
        self._generation += 1
        self._deadline_s = time.monotonic() + self._limit_s
        self._unformed = set(ranks)
        for rank in sorted(self._unformed):
            self._send(rank, wire.FormWorld(self._generation))

    def done(self, rank: int, generation: int) -> bool:
        """A rank is done; whether it was the last one."""
        if generation != self._generation or rank not in self._unformed:
            return False
        self._unformed.discard(rank)
        return not self._unformed

    def lost(self, rank: int) -> set[int]:
        """A rank died; those that wait for it, and would until the timeout. They must be killed."""
        stuck, self._unformed = self._unformed - {rank}, set()
        return stuck

    def overdue(self) -> set[int]:
        """The ranks that should have been done by now."""
        return set(self._unformed) if time.monotonic() > self._deadline_s else set()
