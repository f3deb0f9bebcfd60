"""How long segments may take: shorter where requests have little slack."""

from collections import deque

from tetriserve_backend.domain import Request
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import SchedulerView

_REMEMBERED = 64
"""Requests whose slack counts, the last that came: those that may come next are like them."""
_SHARE = 0.45
"""Of the least slack. Who comes just behind the start of a segment waits for its end."""
_ODD = 1 / 20
"""Share of the requests that may have even less slack: a deadline just possible must not cost everybody dispatches."""
_MOST_HALVINGS = 6


class SegmentLength:
    """Halves the configured length until it is a part of the slack that requests have at their arrival.

    Slack is what is left of the time until the deadline if the request has the fastest degree all along. A request
    without any is late whatever others do, and does not count.

    Args:
        longest_s: what is configured.
        shapes: what requests cost.

    Attributes:
        seconds: the length for now.
    """

    def __init__(self, longest_s: float, shapes: ShapeRows) -> None:
        self._lengths_s = [longest_s / float(2**halvings) for halvings in range(_MOST_HALVINGS + 1)]
        self._shapes = shapes
        self._slacks_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._newest_s = float("-inf")
        self.seconds = longest_s

    def note(self, view: SchedulerView) -> bool:
        """Look at the requests that are new; whether `seconds` changed by that."""
        newest_s = self._newest_s
        for request in reversed(view.requests):
            if request.request.arrival_s <= newest_s:
                break
            self._newest_s = max(self._newest_s, request.request.arrival_s)
            slack_s = self._slack_s(request.request)
            if slack_s > 0.0:
                self._slacks_s.append(slack_s)
        if self._newest_s == newest_s or not self._slacks_s:
            return False
        before, self.seconds = self.seconds, self._fitting()
        return self.seconds != before

    def _fitting(self) -> float:
        slacks_s = sorted(self._slacks_s)
        wanted_s = _SHARE * slacks_s[int(_ODD * len(slacks_s))]
        return next((length for length in self._lengths_s if length <= wanted_s), self._lengths_s[-1])

    def _slack_s(self, request: Request) -> float:
        costs = self._shapes.costs(self._shapes.row(request))
        fastest_s = costs.encode_s + request.num_steps * costs.fastest.step_s + costs.dispatch_s + costs.decode_s
        return request.deadline_s - request.arrival_s - fastest_s
