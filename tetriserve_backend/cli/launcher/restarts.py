"""How often and how fast a server is started anew; pure."""

from collections import deque

_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 30.0


class RestartBudget:
    """Allows restarts with growing pauses, and at most `max_restarts` of them within `window_s`."""

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts, self._window_s = max_restarts, window_s
        self._restarts_s: deque[float] = deque()

    def take(self, now_s: float) -> float | None:
        """Seconds to wait before the next restart (0 for the first); None when it is time to give up."""
        while self._restarts_s and self._restarts_s[0] <= now_s - self._window_s:
            self._restarts_s.popleft()
        recent = len(self._restarts_s)
        if recent >= self._max_restarts:
            return None
        self._restarts_s.append(now_s)
        return 0.0 if recent == 0 else float(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (recent - 1)))
