"""How long a profile will still take."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from tetriserve_backend.latency_table.work import Work
from tetriserve_profiling.hand_over import LatentMove
from tetriserve_profiling.work import size_of


class RemainingTime:
    """Learns from visits how long those to come will take.

    What was visited takes as long as its last visit; another entry as long per unit of its size as those of its kind
    did, and another move as long as its steps.

    Args:
        step_s: seconds of a step; None where that is not known.
    """

    def __init__(self, step_s: Callable[[Work], float | None] = lambda _: None) -> None:
        self._step_s = step_s
        self._visit_s: dict[Work, float] = {}
        self._move_s: dict[LatentMove, float] = {}

    def note(self, work: Work, seconds: float) -> None:
        """A visit took that long."""
        self._visit_s[work] = seconds

    def note_move(self, one: LatentMove, seconds: float) -> None:
        """A visit of a move took that long."""
        self._move_s[one] = seconds

    def estimate(self, to_come: Iterable[Work], moves: Iterable[LatentMove] = ()) -> float | None:
        """Seconds for these visits; None while nothing of the kind of one of them is known."""
        works, moved = Counter(to_come), Counter(moves)
        total_s = 0.0
        for seconds, times in (
            *((self._of_work(work), times) for work, times in works.items()),
            *((self._of_move(one), times) for one, times in moved.items()),
        ):
            if seconds is None:
                return None
            total_s += times * seconds
        return total_s

    def _of_work(self, work: Work) -> float | None:
        if work in self._visit_s:
            return self._visit_s[work]
        known = [taken / size_of(other) for other, taken in self._visit_s.items() if other.kind is work.kind]
        return size_of(work) * statistics.median(known) if known else None

    def _of_move(self, one: LatentMove) -> float | None:
        if one in self._move_s:
            return self._move_s[one]
        steps_s = [seconds for step in one.steps if (seconds := self._step_s(step)) is not None]
        return sum(steps_s) if len(steps_s) == len(one.steps) else None
