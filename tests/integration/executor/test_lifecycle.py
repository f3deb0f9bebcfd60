"""Ranks come up in any kind of process, and nothing of them is ever left."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.executor.driver import Driver, make_request
from tetriserve_backend.domain import ConfigurationError, ServerError
from tetriserve_backend.engine.events import WorkerReady, WorldFormed
from tetriserve_backend.executor import rank_pool
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.demo_models import demo_directory, ensure_demo
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.quick import measure_table

TWO_RANKS = ExecutorSettings(world_size=2)

SERVE_UNTIL_KILLED = """
    import asyncio, sys
    from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
    from tetriserve_backend.executor.model_executor import ModelExecutor

    async def main():
        executor = ModelExecutor.alone(ModelSettings(path={path!r}), ExecutorSettings(world_size=2))
        await executor.start()
        print(*executor.worker_pids().values(), flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def linked_copy(model: Path, directory: Path) -> Path:
    directory.mkdir()
    for source in model.rglob("*"):
        target = directory / source.relative_to(model)
        target.mkdir() if source.is_dir() else target.symlink_to(source)
    return directory


def all_gone(processes: list[psutil.Process], timeout_s: float) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder for temporary files with a short path: sockets cannot lie in those that pytest makes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_killed_parent_leaves_no_process_and_no_directory(tiny_model: Path, scratch: Path) -> None:
    # From standard input, so that `__main__` is no file that could be imported again.
    parent = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(textwrap.dedent(SERVE_UNTIL_KILLED).format(path=str(tiny_model)))
    parent.stdin.close()
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    left = descendants(parent.pid)
    assert {process.pid for process in left} > set(pids)
    assert any(scratch.iterdir())
    # As a terminal's Ctrl-C or a service manager does it to the whole group: ranks leave that to the parent.
    for process in left:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert all(process.is_running() for process in left)
    parent.kill()
    parent.wait()
    assert all_gone(left, timeout_s=30.0)
    assert not list(scratch.iterdir())


def test_shutdown_leaves_nothing_and_may_be_repeated(
    tiny_model: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {process.pid for process in descendants(os.getpid())}
    driver = Driver(ModelSettings(path=str(tiny_model)), TWO_RANKS).start()
    started = [process for process in descendants(os.getpid()) if process.pid not in before]
    assert len(started) >= 3
    # In the middle of work.
    for command in driver.whole(make_request(512, 512, num_steps=50), (((0, 1), 50),)):
        driver.send(command)
    driver.do(asyncio.sleep(0.3))
    driver.do(driver.executor.shutdown())
    driver.stop()
    assert all_gone(started, timeout_s=10.0)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("broken_file", "expected"),
    [("model_index.json", "model_index.json"), ("transformer/config.json", "rank . could not load")],
)
def test_model_that_cannot_be_loaded_is_an_error_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, broken_file: str, expected: str
) -> None:
    directory = linked_copy(tiny_model, tmp_path / "model")
    (directory / broken_file).unlink()
    before = {process.pid for process in descendants(os.getpid())}
    executor = ModelExecutor.alone(ModelSettings(path=str(directory)), TWO_RANKS)
    with pytest.raises(ServerError, match=expected):
        asyncio.run(executor.start())
    assert {process.pid for process in descendants(os.getpid())} <= before


def test_rank_that_cannot_start_again_is_tried_ever_more_slowly_until_it_can(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = linked_copy(tiny_model, tmp_path / "model")
    driver = Driver(ModelSettings(path=str(directory)), TWO_RANKS).start()
    try:
        (directory / "transformer" / "config.json").unlink()
        os.kill(driver.executor.worker_pids()[1], signal.SIGKILL)
        driver.do(asyncio.sleep(1.5))
        assert 2 <= sum("rank 1 is gone" in record.message for record in caplog.records) <= 4
        driver.generate(make_request(), (((0,), 4),))
        (directory / "transformer" / "config.json").symlink_to(tiny_model / "transformer" / "config.json")
        driver.reform()
        driver.generate(make_request(), (((0, 1), 4),))
    finally:
        driver.stop()


def test_rank_that_never_starts_again_is_given_up_and_the_engine_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_pool, "_FIRST_BACK_OFF_S", 0.01)
    directory = linked_copy(tiny_model, tmp_path / "model")
    driver = Driver(ModelSettings(path=str(directory)), TWO_RANKS).start()
    try:
        (directory / "transformer" / "config.json").unlink()
        os.kill(driver.executor.worker_pids()[1], signal.SIGKILL)
        with pytest.raises(ServerError, match="rank 1 is given up"):
            driver.wait_for(WorldFormed)
    finally:
        driver.stop()


def test_rank_that_hangs_while_it_loads_is_replaced(tiny_model: Path) -> None:
    settings = ExecutorSettings(world_size=1, respawn_timeout_s=3.0)
    driver = Driver(ModelSettings(path=str(tiny_model)), settings).start()
    try:
        (first,) = driver.executor.worker_pids().values()
        os.kill(first, signal.SIGKILL)
        while (second := driver.executor.worker_pids().get(0, first)) == first:
            driver.do(asyncio.sleep(0.001))
        os.kill(second, signal.SIGSTOP)
        driver.wait_for(WorkerReady)
        assert driver.executor.worker_pids()[0] not in (first, second)
        driver.reform()
        driver.generate(make_request(), (((0,), 4),))
    finally:
        driver.stop()


def test_unknown_model_is_an_error_that_names_the_setting() -> None:
    executor = ModelExecutor.alone(ModelSettings(path="nobody/has-this-model"), TWO_RANKS)
    with pytest.raises(ConfigurationError, match=r"model\.path: 'nobody/has-this-model'"):
        asyncio.run(executor.start())


def test_demo_model_is_made_once_also_when_two_processes_ask(tmp_path: Path) -> None:
    asker = [
        sys.executable, "-c",
        "import sys; from pathlib import Path; from tetriserve_backend.executor.demo_models import ensure_demo;"
        "print(ensure_demo('demo-flux', Path(sys.argv[1])))", str(tmp_path),
    ]  # fmt: skip
    others = [subprocess.Popen(asker, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {other.communicate(timeout=60)[0].strip() for other in others}
    assert answers == {str(demo_directory("demo-flux", tmp_path))}
    assert [path.name for path in (tmp_path / "models").iterdir()] == [demo_directory("demo-flux", tmp_path).name]
    made_ns = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ensure_demo("demo-flux", tmp_path) == demo_directory("demo-flux", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == made_ns


def test_quick_table_covers_every_valid_degree_of_each_resolution(tiny_model: Path) -> None:
    driver = Driver(ModelSettings(path=str(tiny_model)), TWO_RANKS).start()
    try:
        told: list[str] = []
        table = driver.do(
            measure_table(driver.executor, [(128, 128), (144, 144)], Conditions(), told.append, repeats=3)
        )
    finally:
        driver.stop()
    assert table.degrees(128, 128) == (1, 2)
    assert table.degrees(144, 144) == (1,)
    assert table.source == "measured"
    assert table.world_size == 2
    assert 0 < table.step_s(128, 128, 1) < 1.0
    assert 0 < table.decode_s(144, 144) < 1.0
    assert table.dispatch_s < 0.1
    # An encode, three steps, two decodes.
    assert len(told) == 6


def test_cuda_build_of_torch_without_a_gpu_serves_on_cpu() -> None:
    # The usual wheel of torch is a CUDA build, which xfuser takes for a GPU.
    script = """
        import torch
        torch.version.cuda = "12.8"
        from tetriserve_backend.executor.xfuser_cpu import bring_up
        bring_up("cpu")
        import xfuser.envs as envs
        from xfuser.model_executor.layers import usp
        assert envs.get_device(0) == torch.device("cpu"), envs.get_device(0)
        assert envs.PACKAGES_CHECKER.get_packages_info()["has_long_ctx_attn"]
        assert usp.PROCESS_GROUP is not None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
