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

SETTINGS = ProfileSettings(resolutions=((64, 64), (128, 128)), batches=(1, 2), repeats=4, rounds=2)
# A machine where others work too runs in bursts: one entry of two profiles may differ by a factor of two (alone, 1.2
# was the most), but half of them by no more than this.
FLOOR, USUAL = 1.0, 0.3
PROFILES = 4
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


def agree(first: TableDocument, second: TableDocument) -> bool:
    """Whether two profiles could be of one machine."""
    comparison = compare(first, second, FLOOR)
    usual = statistics.median(pair.distance for pair in comparison.pairs) - 1.0
    return comparison.disagreeing == 0 and usual <= USUAL


async def with_ranks(model: Path) -> tuple[list[TableDocument], TableDocument, list[MoveCost]]:
    """Profiles until two in a row agree, one in which a rank dies, and hand-overs."""
    executor = ModelExecutor.alone(ModelSettings(path=str(model)), ExecutorSettings(world_size=2))

    def kill_a_rank(progress: Progress) -> None:
        if progress.done == 5:
            os.kill(executor.worker_pids()[1], signal.SIGKILL)

    await executor.start()
    try:
        profiles = [await measure(executor)]
        while len(profiles) < PROFILES and (len(profiles) < 2 or not agree(*profiles[-2:])):
            profiles.append(await measure(executor))
        return profiles, await measure(executor, kill_a_rank), await measure_moves(executor)
    finally:
        await executor.shutdown()


@pytest.mark.alone
def test_profiles_of_one_machine_agree_and_survive_a_lost_rank(tiny_model: Path) -> None:
    profiles, survivor, moves = asyncio.run(with_ranks(tiny_model))
    comparison = compare(*profiles[-2:], FLOOR)
    assert agree(*profiles[-2:]), comparison.pairs
    # Steps of two shapes, two batches and two degrees; an encode; decodes of two shapes.
    assert len(comparison.pairs) == 11
    for document in (profiles[0], survivor):
        assert document.absent == []
        assert [entry.samples for entry in document.step] == [4] * 8
        # On CPU it is the resident set, of which the libraries alone take that much.
        assert all((entry.memory_bytes or 0) > 50e6 for entry in document.step)
    assert [(cost.move.before, cost.move.after) for cost in moves] == [
        ((0,), (0, 1)), ((0, 1), (0,)), ((0,), (1,))
    ]  # fmt: skip
    # The smallest size is measured twice as often.
    assert all(cost.samples == 6 and cost.step_s > 0 for cost in moves)


async def at_held_pace(model: Path, pace_table: Path) -> tuple[str, TableDocument]:
    """What is said of a shape that the pace lacks; then a profile, so the group is sound. The file is read but once."""
    settings = ModelSettings(path=str(model), pace_table=str(pace_table))
    executor = ModelExecutor.alone(settings, ExecutorSettings(world_size=2))
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


def test_ranks_that_hold_a_pace_are_never_faster(tiny_model: Path, tmp_path: Path) -> None:
    pace = LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1", "model": "tiny", "device": "none", "world_size": 2,
            "dtype": "float32", "source": "analytic", "dispatch_seconds": 0.0,
            "step": [
                {"height": side, "width": side, "batch": batch, "sp": sp, "seconds": 0.03 * batch / sp}
                for side in (64, 128) for batch in (1, 2) for sp in (1, 2)
            ],
            "encode": [{"batch": 1, "seconds": 0.02}],
            "decode": [{"height": side, "width": side, "seconds": 0.04} for side in (64, 128)],
        },
        "here",
    )  # fmt: skip
    pace.save(tmp_path / "pace.latency.json")
    reason, document = asyncio.run(at_held_pace(tiny_model, tmp_path / "pace.latency.json"))
    assert "model.pace_table" in reason and "256x256" in reason
    found = LatencyTable.from_dict(document.model_dump(by_alias=True), "found")
    # The ranks' clock may be a little coarser than the table.
    assert all(found.seconds(work) >= 0.999 * pace.seconds(work) for work in pace.works)


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
