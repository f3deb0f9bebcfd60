"""How often and how fast a server is started anew; pure."""

from collections import deque

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 30.0


class RestartBudget:
    """Allows at most `max_restarts` restarts within `window_s`.

    A server that had been ready is started anew at once; one that did not even get ready has to wait,
    each time twice as long.
    """

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts, self._window_s = max_restarts, window_s
        self._restarts_s: deque[float] = deque()
        self._failed_starts = 0

    def take(self, now_s: float, was_ready: bool) -> float | None:
        """Seconds to wait before the next start; None when it is time to give up."""
        while self._restarts_s and self._restarts_s[0] <= now_s - self._window_s:
            self._restarts_s.popleft()
        if len(self._restarts_s) >= self._max_restarts:
            return None
        self._restarts_s.append(now_s)
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        return 0.0 if was_ready else float(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (self._failed_starts - 1)))
