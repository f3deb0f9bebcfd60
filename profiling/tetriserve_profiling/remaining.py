"""How long a profile will still take."""

import statistics
from collections.abc import Iterable

from tetriserve_backend.latency_table.work import Work
from tetriserve_profiling.work import size_of


class RemainingTime:
    """Learns from visits how long those to come will take.

    An entry that was visited takes as long as its last visit; another one as long per unit of its size as those of
    its kind did.
    """

    def __init__(self) -> None:
        self._visit_s: dict[Work, float] = {}

    def note(self, work: Work, seconds: float) -> None:
        """A visit took that long."""
        self._visit_s[work] = seconds

    def estimate(self, to_come: Iterable[Work]) -> float | None:
        """Seconds for these visits; None while nothing of the kind of one of them is known."""
        total_s = 0.0
        for work in to_come:
            seconds = self._visit_s.get(work)
            if seconds is None:
                known = [taken / size_of(other) for other, taken in self._visit_s.items() if other.kind is work.kind]
                if not known:
                    return None
                seconds = size_of(work) * statistics.median(known)
            total_s += seconds
        return total_s
