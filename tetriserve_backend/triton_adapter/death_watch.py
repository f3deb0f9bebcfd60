"""Ends a stub process when tritonserver is gone, however it went."""

import os
import threading
import time

_POLL_S = 0.5


def start_death_watch() -> None:
    """Leave the process within a second of its parent's death.

    Triton does not end its stubs when it crashes, and a stub that waits for a dead server waits for ever.
    """
    parent_pid = os.getppid()
    threading.Thread(target=_watch, args=(parent_pid,), name="death-watch", daemon=True).start()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os._exit(1)
