import os
import random
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

import psutil
import pytest

from tetriserve_client.server_memory import MemoryRecord, growth_mb_per_100, memory_mb, shared_segments

COUNTS = list(range(0, 1001, 25))


def growth(memory: list[float]) -> float:
    return growth_mb_per_100(COUNTS, memory, warm_up=250)


def test_growth_is_the_slope_of_a_line() -> None:
    assert growth([200.0 + 0.03 * count for count in COUNTS]) == pytest.approx(3.0)
    assert growth([200.0] * len(COUNTS)) == pytest.approx(0.0, abs=1e-9)
    assert growth([200.0 - 0.01 * count for count in COUNTS]) == pytest.approx(-1.0)


def test_growth_is_found_below_noise() -> None:
    rng = random.Random(1)
    grows = [200.0 + 0.02 * count + rng.gauss(0.0, 1.0) for count in COUNTS]
    stays = [200.0 + rng.gauss(0.0, 1.0) for _ in COUNTS]
    assert growth(grows) == pytest.approx(2.0, abs=0.3)
    assert growth(stays) == pytest.approx(0.0, abs=0.3)


def test_warm_up_is_not_growth() -> None:
    warming = [200.0 + 50.0 * min(1.0, count / 240) for count in COUNTS]
    assert growth(warming) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("at", [250, 300, 600, 625, 700, 1000])
def test_one_step_is_no_leak(at: int) -> None:
    assert growth([200.0 + (7.5 if count >= at else 0.0) for count in COUNTS]) == pytest.approx(0.0, abs=1e-9)


def test_a_leak_in_steps_is_found() -> None:
    assert growth([200.0 + 4 * (count // 100) for count in COUNTS]) == pytest.approx(4.0, abs=0.5)


def test_slopes_need_three_samples_after_the_warm_up() -> None:
    with pytest.raises(ValueError, match="2 samples after the warm-up"):
        growth_mb_per_100([0, 500, 1000], [1.0, 2.0, 3.0], warm_up=1)
    assert growth_mb_per_100([0, 500, 750, 1000], [1.0, 2.0, 3.0, 5.0], warm_up=1) == pytest.approx(0.4)


def test_memory_counts_what_a_process_wrote_to() -> None:
    before = memory_mb(os.getpid())
    block = bytearray(b"x") * 40_000_000
    assert memory_mb(os.getpid()) - before == pytest.approx(len(block) / 1e6, abs=4.0)


def test_record_refuses_processes_that_come_or_end() -> None:
    script = (
        "import subprocess; print('up', flush=True); input(); subprocess.Popen(['sleep', '60']);"
        " print('started', flush=True); input()"
    )
    root = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert root.stdin is not None and root.stdout is not None
    try:
        root.stdout.readline()
        record = MemoryRecord(root.pid)
        assert record.take(0) > 1.0
        root.stdin.write(b"\n")
        root.stdin.flush()
        root.stdout.readline()
        with pytest.raises(RuntimeError, match=r"after 25 requests processes had ended: \[\]; had come: \['sleep'\]"):
            record.take(25)
        assert list(record.requests) == [0]
    finally:
        for process in [*psutil.Process(root.pid).children(), root]:
            process.kill()
        root.wait()
        root.stdin.close()
        root.stdout.close()


def test_segments_are_found_by_their_prefix() -> None:
    name = f"tetriserve-test-{os.getpid()}-1"
    block = SharedMemory(name=name, create=True, size=16)
    try:
        assert shared_segments(f"tetriserve-test-{os.getpid()}-") == [name]
    finally:
        block.close()
        block.unlink()
    assert shared_segments(f"tetriserve-test-{os.getpid()}-") == []
