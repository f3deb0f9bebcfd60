"""Latency tables measured on real ranks."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tetriserve_backend.cli.table.comparison import compare
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine.commands import HandOver, Source, SourceKind
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import TableDocument, parse_document
from tetriserve_profiling.bench import Bench, SegmentsFailedError
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.hand_over import MoveCost
from tetriserve_profiling.partial_file import partial_path
from tetriserve_profiling.profiler import Profiler, Progress
from tetriserve_profiling.record import Record
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import ProfileSettings

SETTINGS = ProfileSettings(resolutions=((64, 64), (128, 128)), batches=(1, 2), repeats=4, rounds=2, warmup=1)
WORLD_SIZE = 2
COMMAND = [sys.executable, "-m", "tetriserve_backend.cli.app", "profile"]
TIMEOUT_S = 120.0


async def measure(executor: ModelExecutor, on_progress: Callable[[Progress], None] = lambda _: None) -> TableDocument:
    """A whole profile, as the file would hold it."""
    work, record = list_work(SETTINGS, modes_of(executor)), Record()
    profiler = Profiler(executor, SETTINGS, record, on_progress)
    await profiler.measure(work)
    profiler.release()
    raw = LatencyTable.from_dict(record.document(identity_of(executor, {}), work), "measured").to_dict()
    return parse_document(raw, "measured")


async def measure_moves(executor: ModelExecutor) -> list[MoveCost]:
    few = ProfileSettings(resolutions=((128, 128),), repeats=3, rounds=1)
    work, record = list_work(few, modes_of(executor)), Record()
    profiler = Profiler(executor, few, record, lambda _: None)
    await profiler.measure(work, with_moves=True)
    return record.move_costs()


async def with_a_lost_rank(model: Path) -> tuple[TableDocument, list[MoveCost]]:
    """A profile in which a rank dies, then hand-overs."""
    executor = ModelExecutor.alone(ModelSettings(path=str(model)), ExecutorSettings(world_size=WORLD_SIZE))

    def kill_a_rank(progress: Progress) -> None:
        if progress.done == 5:
            os.kill(executor.worker_pids()[1], signal.SIGKILL)

    await executor.start()
    try:
        return await measure(executor, kill_a_rank), await measure_moves(executor)
    finally:
        await executor.shutdown()


def test_a_profile_survives_a_lost_rank(tiny_model: Path) -> None:
    document, moves = asyncio.run(with_a_lost_rank(tiny_model))
    assert document.absent == []
    # Steps of two shapes, two batches and two degrees.
    assert [entry.samples for entry in document.step] == [4] * 8
    # On CPU it is the resident set, of which the libraries alone take that much.
    assert all((entry.memory_bytes or 0) > 50e6 for entry in document.step)
    assert [(cost.move.before, cost.move.after) for cost in moves] == [
        ((0,), (0, 1)), ((0, 1), (0,)), ((0,), (1,))
    ]  # fmt: skip
    # The smallest size is measured twice as often.
    assert all(cost.samples == 6 and cost.step_s > 0 for cost in moves)


def held_pace() -> LatencyTable:
    """No two entries alike, and each five times and more what it takes to compute: a busy machine can keep to it."""
    step_s = {(64, 1, 1): 0.10, (64, 1, 2): 0.08, (64, 2, 1): 0.15, (64, 2, 2): 0.13}
    step_s |= {(128, batch, sp): seconds + 0.02 for (_, batch, sp), seconds in step_s.items()}
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1", "model": "tiny", "device": "none", "world_size": WORLD_SIZE,
            "dtype": "float32", "source": "analytic", "dispatch_seconds": 0.0,
            "step": [
                {"height": side, "width": side, "batch": batch, "sp": sp, "seconds": seconds}
                for (side, batch, sp), seconds in step_s.items()
            ],
            "encode": [{"batch": 1, "seconds": 0.07}],
            "decode": [{"height": side, "width": side, "seconds": 0.09 + side / 6400} for side in (64, 128)],
        },
        "here",
    )  # fmt: skip


async def at_held_pace(model: Path, pace_table: Path) -> tuple[str, TableDocument]:
    """What is said of a shape that the pace lacks; then a profile, so the group is sound. The file is read but once."""
    held_pace().save(pace_table)
    settings = ModelSettings(path=str(model), pace_table=str(pace_table))
    executor = ModelExecutor.alone(settings, ExecutorSettings(world_size=WORLD_SIZE))
    await executor.start()
    pace_table.unlink()
    try:
        bench = Bench(executor)
        hand_over = HandOver(Source(SourceKind.BROADCAST, 0), Source(SourceKind.CREATE))
        requests = [bench.request("large", 256, 256, 1)]
        with pytest.raises(SegmentsFailedError) as failure:
            await bench.run([bench.command(SegmentKind.DENOISE, requests, (0, 1), hand_over, num_steps=1)])
        return str(failure.value), await measure(executor)
    finally:
        await executor.shutdown()


@pytest.mark.alone
def test_a_second_profile_of_the_same_machine_agrees_with_the_first(tiny_model: Path, tmp_path: Path) -> None:
    """Ranks of their own for each, at a pace that both hold: without one, two cores that others share have none."""
    pace, profiles = held_pace(), []
    truth = parse_document(pace.to_dict(), "pace")
    for number in range(2):
        reason, document = asyncio.run(at_held_pace(tiny_model, tmp_path / f"{number}.latency.json"))
        assert "model.pace_table" in reason and "256x256" in reason
        found = LatencyTable.from_dict(document.model_dump(by_alias=True), "found")
        # The ranks' clock may be a little coarser than the table.
        assert all(found.seconds(work) >= 0.999 * pace.seconds(work) for work in pace.works)
        assert compare(truth, document, floor=0.2).disagreeing == 0
        profiles.append(document)
    # What `tetriserve table diff` does, at its default tolerance.
    comparison = compare(*profiles)
    assert len(comparison.pairs) == len(pace.works)
    assert (comparison.disagreeing, comparison.disagreeing_overheads) == (0, 0), comparison
    # Samples that lie far apart would let anything agree.
    assert statistics.median(pair.allowed for pair in comparison.pairs) <= 0.2, comparison


def profile_command(model: Path, table: Path) -> "subprocess.Popen[str]":
    options = ["--resolutions", "64x64,128x128", "--batches", "1", "--repeats", "4", "--out", str(table)]
    return subprocess.Popen([*COMMAND, "--model", str(model), *options], stderr=subprocess.PIPE, text=True)


def test_an_interrupted_profile_is_taken_up_by_the_same_command(tiny_model: Path, tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    first = profile_command(tiny_model, table)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not partial_path(table).exists() or '"seconds": [' not in partial_path(table).read_text():
        assert time.monotonic() < deadline_s and first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130, told
    assert "interrupted; the same command goes on" in told
    assert not table.exists() and partial_path(table).exists()

    second = profile_command(tiny_model, table)
    _, told = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, told
    assert "samples are there already" in told
    assert [path.name for path in tmp_path.iterdir()] == [table.name]
    document = parse_document(LatencyTable.load(table).to_dict(), "written")
    assert [entry.samples for entry in document.step] == [4] * 4
    assert document.source == "measured" and document.text_tokens == 64
    assert len(document.hand_over) == 3
    assert document.settings["profile"]["repeats"] == 4
    assert (document.settings["threads_per_rank"], document.settings["pin_ranks"]) == (1, False)
