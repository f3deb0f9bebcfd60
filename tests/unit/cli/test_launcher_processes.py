"""Processes, shared memory, logs and restarts."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tetriserve_backend.cli.launcher.log_tail import LogTail
from tetriserve_backend.cli.launcher.probe import ProbeError, ProbeLoop, RankWatch
from tetriserve_backend.cli.launcher.processes import RUN_ID_VARIABLE, Run, clean_up, marked_processes
from tetriserve_backend.cli.launcher.reaper import Reaper
from tetriserve_backend.cli.launcher.restarts import RestartBudget
from tetriserve_backend.cli.launcher.server_process import describe_exit

REPOSITORY = Path(__file__).resolve().parents[3]
# A child in a session of its own below a shell that ends: neither parent, group nor session leads to it.
ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "work"
    folder.mkdir()
    return Run(f"tetriserve-test-{uuid.uuid4().hex[:8]}", folder)


def leave_traces(run: Run) -> None:
    environment = {**os.environ, RUN_ID_VARIABLE: run.run_id}
    subprocess.run([sys.executable, "-c", ORPHAN], env=environment, check=True)
    Path(f"/dev/shm/{run.shm_prefix}segment").write_bytes(b"x")
    assert len(marked_processes(run.run_id)) == 1


def is_clean(run: Run) -> bool:
    segments = list(Path("/dev/shm").glob(f"{run.shm_prefix}*"))
    return not (marked_processes(run.run_id) or segments or run.working_dir.exists())


def test_clean_up_finds_orphans_and_leaves_others_alone(run: Run) -> None:
    leave_traces(run)
    other = Path(f"/dev/shm/{run.run_id}x")
    other.write_bytes(b"")
    try:
        assert clean_up(run) == []
        assert is_clean(run)
        assert other.exists()
    finally:
        other.unlink()


def test_reaper_cleans_up_when_its_pipe_ends(run: Run) -> None:
    leave_traces(run)
    reaper = Reaper(run, [str(REPOSITORY)])
    reaper.ensure()
    assert not is_clean(run)
    reaper.dismiss()
    assert is_clean(run)


def test_killed_reaper_is_replaced(run: Run) -> None:
    reaper = Reaper(run, [str(REPOSITORY)])
    reaper.ensure()
    first = reaper._process
    assert first is not None
    first.kill()
    first.wait()
    reaper.ensure()
    assert reaper._process is not first
    reaper.dismiss()


def test_server_that_was_ready_is_restarted_at_once_until_the_budget_is_spent() -> None:
    budget = RestartBudget(max_restarts=3, window_s=100.0)
    assert [budget.take(float(now), True) for now in range(4)] == [0.0, 0.0, 0.0, None]
    assert budget.take(150.0, True) == 0.0


def test_failed_starts_wait_longer_each_time() -> None:
    budget = RestartBudget(max_restarts=10, window_s=100.0)
    assert [budget.take(0.0, ready) for ready in (True, False, False, False, True, False)] == [0, 1, 2, 4, 0, 1]


def test_log_tail_shows_our_lines_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('I 1] "tetriserve: before"\n')
    tail = LogTail(path)
    with path.open("a") as log:
        log.write('I 2] "tetriserve: loading"\nE 3] "no stream for tetriserve: no CUDA"\nI 4] "tetri')
        log.flush()
        assert tail.news() == ["loading"]
        log.write('serve: ready"\n')
        log.flush()
        assert tail.news() == ["ready"]
    assert tail.news() == []
    assert tail.last_problems(3) == ['E 3] "no stream for tetriserve: no CUDA"']
    assert LogTail(None).news() == LogTail(None).last_problems(5) == []


def test_probes_must_fail_in_a_row_before_the_server_counts_as_dead() -> None:
    outcomes = iter([False, True, False, False])

    def probe() -> None:
        if not next(outcomes):
            raise ProbeError("no answer")

    loop = ProbeLoop(probe, interval_s=0.001, max_failures=2)
    loop.start()
    start_s = time.monotonic()
    while loop.unhealthy is None:
        assert time.monotonic() - start_s < 5.0
        time.sleep(0.001)
    assert "2 probes in a row failed" in loop.unhealthy
    assert list(outcomes) == []


def test_server_without_any_rank_counts_as_dead_after_a_while() -> None:
    watch = RankWatch(120.0)
    watch.check({"ranks": []}, 0.0)
    watch.check({"ranks": [0]}, 100.0)
    watch.check({"ranks": []}, 130.0)
    watch.check({"ranks": []}, 250.0)
    with pytest.raises(ProbeError, match="no rank has been usable for more than 120 s"):
        watch.check({"ranks": []}, 250.1)
    watch.check({"ranks": [1]}, 251.0)


def test_exits_are_told_in_words() -> None:
    assert [describe_exit(status) for status in (0, 1, -9)] == ["with status 0", "with status 1", "by SIGKILL"]
