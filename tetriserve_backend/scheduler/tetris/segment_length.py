"""How long segments may take: shorter where deadlines are."""

from collections import deque

from tetriserve_backend.scheduler.view import SchedulerView

_REMEMBERED = 64
"""Requests whose time until the deadline counts, the last that came: those that may come next are like them."""
_SHARE = 1 / 8
"""Of the shortest time until a deadline. Who comes just behind the start of a segment waits for its end."""
_ODD = 1 / 20
"""Share of the requests that may have even less time: one impossible deadline must not cost everybody dispatches."""
_MOST_HALVINGS = 6


class SegmentLength:
    """Halves the configured length until it is a small part of the time that requests have.

    Args:
        longest_s: what is configured.

    Attributes:
        seconds: the length for now.
    """

    def __init__(self, longest_s: float) -> None:
        self._lengths_s = [longest_s / float(2**halvings) for halvings in range(_MOST_HALVINGS + 1)]
        self._budgets_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._newest_s = float("-inf")
        self.seconds = longest_s

    def note(self, view: SchedulerView) -> bool:
        """Look at the requests that are new; whether `seconds` changed by that."""
        newest_s = self._newest_s
        for request in reversed(view.requests):
            arrival_s = request.request.arrival_s
            if arrival_s <= newest_s:
                break
            self._newest_s = max(self._newest_s, arrival_s)
            self._budgets_s.append(request.request.deadline_s - arrival_s)
        if self._newest_s == newest_s:
            return False
        before, self.seconds = self.seconds, self._fitting()
        return self.seconds != before

    def _fitting(self) -> float:
        budgets_s = sorted(self._budgets_s)
        wanted_s = _SHARE * budgets_s[int(_ODD * len(budgets_s))]
        return next((length for length in self._lengths_s if length <= wanted_s), self._lengths_s[-1])
