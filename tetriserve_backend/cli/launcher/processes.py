"""Finds and ends the processes of one run, and removes what they left in shared memory."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# The reaper imports this module and must start fast: nothing of ours beside names.
RUN_ID_VARIABLE = "TETRISERVE_RUN_ID"
"""Marks every process of one `tetriserve serve`: stubs and ranks inherit it, so none can be overlooked,
whatever became of their parents, sessions and process groups."""

_SHARED_MEMORY = Path("/dev/shm")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """What belongs to one `tetriserve serve`: marked processes, prefixed shared memory, a working folder."""

    run_id: str
    working_dir: Path

    @property
    def shm_prefix(self) -> str:
        """What the names of all its shared-memory segments begin with."""
        return f"{self.run_id}-"


def marked_processes(run_id: str) -> list[psutil.Process]:
    """Living processes that carry the run's mark."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(RUN_ID_VARIABLE) == run_id:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_marked(run_id: str, timeout_s: float = 10.0) -> list[int]:
    """Kill every process of the run, new ones included, until none is left; the ids of those that stayed."""
    deadline_s = time.monotonic() + timeout_s
    while processes := marked_processes(run_id):
        for process in processes:
            try:
                process.kill()
            except psutil.Error:
                continue
        if time.monotonic() > deadline_s:
            return [process.pid for process in processes]
        psutil.wait_procs(processes, timeout=_POLL_S)
    return []


def remove_shared_memory(prefix: str) -> list[str]:
    """Unlink the segments whose names begin with `prefix`; their names."""
    removed = []
    for segment in _SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
        removed.append(segment.name)
    return removed


def clean_up(run: Run) -> list[int]:
    """Kill what is left of a run and remove its shared memory and working folder; ids of what would not die."""
    stayed = kill_marked(run.run_id)
    remove_shared_memory(run.shm_prefix)
    shutil.rmtree(run.working_dir, ignore_errors=True)
    return stayed


def stub_processes(server_pid: int) -> list[psutil.Process]:
    """The living stub processes of a tritonserver."""
    try:
        return [child for child in psutil.Process(server_pid).children() if _is_living_stub(child)]
    except psutil.Error:
        return []


def _is_living_stub(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "triton_python" in process.name()
    except psutil.Error:
        return False
