"""Peak memory of processes, as Linux counts it."""

import re
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_RESET_PEAK = "5"
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def reset_peak(pids: Iterable[int]) -> bool:
    """Start counting the peak resident set of each process anew; false where the kernel does not let us."""
    try:
        for pid in pids:
            (_PROC / str(pid) / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes(pids: Iterable[int]) -> int | None:
    """The largest peak resident set of these processes since `reset_peak`; None if it cannot be read."""
    peaks = []
    for pid in pids:
        try:
            found = _PEAK.search((_PROC / str(pid) / "status").read_text(encoding="utf-8"))
        except OSError:
            return None
        if found is None:
            return None
        peaks.append(1024 * int(found[1]))
    return max(peaks, default=None)
