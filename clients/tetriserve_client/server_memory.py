"""What the processes of a server on this machine hold in memory, and whether it grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

_SHARED_MEMORY = Path("/dev/shm")
_MIN_SAMPLES = 3
_ADDED_UP = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


def memory_mb(pid: int) -> float:
    """What a process holds, in MB (1e6 bytes): its anonymous memory and shared segments, pages that it shares in part.

    Mapped files are left out: they are the page cache's, and how many others map them is no doing of this process.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines())
    return sum(int(parts[1]) for parts in lines if parts[0] in _ADDED_UP) * 1024 / 1e6


def server_processes(supervisor_pid: int) -> dict[int, str]:
    """Names of all processes of a server by process id, from the supervisor down.

    Raises:
        psutil.NoSuchProcess: one of them ended meanwhile.
    """
    root = psutil.Process(supervisor_pid)
    names = {root.pid: "supervisor"}
    for process in root.children(recursive=True):
        names[process.pid] = _name(process)
    return names


def shared_segments(prefix: str) -> list[str]:
    """The shared-memory segments of this machine whose names begin with `prefix`, in order."""
    return sorted(path.name for path in _SHARED_MEMORY.iterdir() if path.name.startswith(prefix))


def growth_mb_per_100(requests: Sequence[int], memory: Sequence[float], *, warm_up: int) -> float:
    """By how many MB a process grows per 100 requests: slopes of least-squares lines, without the warm-up.

    The lesser of the slopes in the first and the last half of the samples: a heap takes some MB more once in a while,
    but a leak does not stop.

    Args:
        requests: how many had been answered at each sample, ascending.
        memory: MB at each sample, as many.
        warm_up: samples after fewer requests are left out: pools fill, caches and heaps reach their size, and each
            rank sees each shape for the first time.

    Raises:
        ValueError: fewer than three samples are left after the warm-up.
    """
    kept = [(count, mb) for count, mb in zip(requests, memory, strict=True) if count >= warm_up]
    if len(kept) < _MIN_SAMPLES:
        raise ValueError(f"memory: {len(kept)} samples after the warm-up; two slopes need at least {_MIN_SAMPLES}")
    middle = len(kept) // 2
    return min(_slope(kept[: middle + 1]), _slope(kept[middle:]))


def _slope(samples: Sequence[tuple[int, float]]) -> float:
    counts, values = np.array(samples).T
    return float(np.polyfit(counts / 100, values, 1)[0])


class MemoryRecord:
    """Samples of all processes of one server.

    Args:
        supervisor_pid: process id of `tetriserve serve`.
    """

    def __init__(self, supervisor_pid: int) -> None:
        self._supervisor_pid = supervisor_pid
        self._processes = server_processes(supervisor_pid)
        self._requests: list[int] = []
        self._memory: dict[int, list[float]] = {pid: [] for pid in self._processes}

    def take(self, requests: int) -> float:
        """Sample every process after `requests` answers; the sum in MB.

        Raises:
            RuntimeError: the server's processes are no longer those of the beginning.
        """
        try:
            now = server_processes(self._supervisor_pid)
            memory = {pid: memory_mb(pid) for pid in now}
        except (psutil.NoSuchProcess, OSError) as error:
            raise RuntimeError(f"a process of the server ended after {requests} requests: {error}") from error
        if now.keys() != self._processes.keys():
            ended = [name for pid, name in self._processes.items() if pid not in now]
            came = [name for pid, name in now.items() if pid not in self._processes]
            raise RuntimeError(f"after {requests} requests processes had ended: {ended}; had come: {came}")
        self._requests.append(requests)
        for pid, mb in memory.items():
            self._memory[pid].append(mb)
        return sum(memory.values())

    @property
    def requests(self) -> Sequence[int]:
        """How many requests had been answered at each sample."""
        return self._requests

    @property
    def series(self) -> Mapping[str, Sequence[float]]:
        """MB at each sample by process, named as `name (process id)`."""
        return {f"{name} ({pid})": self._memory[pid] for pid, name in self._processes.items()}


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    models = [Path(part).parent.parent.name for part in command if part.endswith("/1/model.py")]
    if models:
        return f"stub of {models[0]}"
    if any("tetriserve_backend.executor.nursery" in part for part in command):
        # Ranks are forks of the nursery, and so have its command line.
        return "nursery" if "model.py" in " ".join(_parent_command(process)) else "rank"
    if "tetriserve_backend.cli.launcher.reaper" in command:
        return "reaper"
    return process.name()


def _parent_command(process: psutil.Process) -> list[str]:
    parent = process.parent()
    return parent.cmdline() if parent else []
