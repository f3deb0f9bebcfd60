"""What signals have asked of a supervisor."""

import time

_POLL_S = 0.1


class StopRequest:
    """Whether to stop, and whether at once; set by a signal handler, seen by whoever looks.

    Plain attributes and no `threading.Event`: a handler runs in the middle of what the main thread does, and if that
    were waiting on the event, the handler would wait for a lock that its own thread holds.
    """

    def __init__(self) -> None:
        self._is_made = self._is_urgent = False

    @property
    def is_made(self) -> bool:
        """Somebody asked to stop."""
        return self._is_made

    @property
    def is_urgent(self) -> bool:
        """Somebody asked again: to stop now."""
        return self._is_urgent

    def make(self) -> None:
        """Ask to stop. Callable from a signal handler."""
        if self._is_made:
            self._is_urgent = True
        self._is_made = True

    def wait(self, timeout_s: float) -> bool:
        """Whether somebody asked to stop, as soon as that is so, or `timeout_s` seconds from now."""
        end_s = time.monotonic() + timeout_s
        while not self._is_made and (left_s := end_s - time.monotonic()) > 0.0:
            time.sleep(min(_POLL_S, left_s))
        return self._is_made
