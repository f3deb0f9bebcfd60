"""A process that ends when its parent does, however the parent ends."""

import ctypes
import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5
_EXIT_STATUS = 3


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that made it ends, and watch for it besides.

    The watch covers systems without that feature, and a parent that died before the call.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        # Not Linux.
        pass
    start_death_watch(parent_pid)


def start_death_watch(parent_pid: int | None = None) -> None:
    """Leave this process within a second of the death of its parent: the present one, if no other is named.

    A stub process of Triton needs it: Triton does not end them when it crashes, and one that waits for a
    dead server waits for ever.
    """
    watched = os.getppid() if parent_pid is None else parent_pid
    threading.Thread(target=_watch, args=(watched,), name="death-watch", daemon=True).start()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os._exit(_EXIT_STATUS)
