"""A profile on ranks in virtual time: what it measures, survives and reports."""

import asyncio

import pytest

from tests.unit.profiling.fake_executor import DISPATCH_S, PEAK_BYTES_PER_TOKEN, FakeExecutor, step_s
from tetriserve_backend.domain import LatencyTableError, SegmentKind
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.work import decode_work, encode_work, step_work
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.quick import measure_table
from tetriserve_profiling.record import Record
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import ProfileSettings

SETTINGS = ProfileSettings(resolutions=((256, 256), (512, 512)), batches=(1, 2), repeats=6, rounds=3, warmup=2)
OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"


def measure(executor, settings=SETTINGS, record=None, on_progress=lambda progress: None):
    """The record after a whole profile."""
    record = Record() if record is None else record
    profiler = Profiler(executor, settings, record, on_progress)
    asyncio.run(profiler.measure(list_work(settings, modes_of(executor))))
    return record


def document(executor, record, settings=SETTINGS):
    return record.document(identity_of(executor, {}), list_work(settings, modes_of(executor)))


def denoises(executor):
    return [command for command in executor.commands if command.segment.kind is SegmentKind.DENOISE]


def shape_of(command):
    segment = command.segment
    return segment.height, segment.batch_size, segment.placement.sp_degree


def test_a_profile_finds_the_seconds_that_the_ranks_take():
    executor = FakeExecutor()
    raw = document(executor, measure(executor))
    table = LatencyTable.from_dict(raw, "t")
    for command in denoises(executor):
        height, batch, degree = shape_of(command)
        assert table.step_s(height, height, degree, batch) == pytest.approx(step_s(command))
    assert table.dispatch_s == pytest.approx(DISPATCH_S)
    assert table.encode_s() == pytest.approx(0.03)
    assert [entry["batch"] for entry in raw["encode"]] == [1], "requests that share an encode share their prompt"
    assert table.decode_s(512, 512) == pytest.approx(1e-6 * 512 * 512)
    assert all(entry["samples"] == 6 and entry["cv"] < 1e-6 for entry in raw["step"] + raw["encode"] + raw["decode"])
    assert all(entry["mean_seconds"] == pytest.approx(entry["seconds"]) for entry in raw["step"] + raw["decode"])
    assert raw["step"][0]["memory_bytes"] == 256 * PEAK_BYTES_PER_TOKEN
    assert table.shared_counts == {"heads": 8, "text": 64}
    assert "absent" not in raw


def test_unmeasured_runs_come_before_the_samples_of_every_visit():
    executor = FakeExecutor()
    measure(executor, SETTINGS.model_copy(update={"resolutions": ((256, 256),), "batches": (1,), "degrees": (1,)}))
    singles = [command.segment.num_steps for command in denoises(executor)]
    # 0.36 ms a step: samples of eight steps, behind two warm-up steps at first and one in later rounds.
    assert singles == [1, 1, 8, 8, 1, 8, 8, 1, 8, 8]


def test_split_guidance_is_measured_beside_plain_sharing():
    executor = FakeExecutor(guided=True)
    raw = document(executor, measure(executor))
    assert {(e["sp"], e.get("cfg", 1)) for e in raw["step"]} == {(1, 1), (2, 1), (1, 2)}
    assert {command.segment.cfg_degree for command in denoises(executor)} == {1, 2}


def test_what_does_not_fit_is_left_out_with_the_reason_and_larger_batches_are_not_tried():
    settings = SETTINGS.model_copy(update={"batches": (1, 2, 4)})

    def fault(command):
        height, batch, degree = shape_of(command)
        is_step = command.segment.kind is SegmentKind.DENOISE
        return OOM if is_step and height == 512 and batch >= 2 and degree == 1 else None

    executor = FakeExecutor(fault=fault)
    raw = document(executor, measure(executor, settings), settings)
    assert [(item["batch"], item["sp"]) for item in raw["absent"]] == [(2, 1), (4, 1)]
    assert raw["absent"][0]["reason"].startswith("out of memory: OutOfMemoryError: CUDA")
    assert raw["absent"][1]["reason"] == "out of memory: step 512x512 batch 2 sp 1 is"
    assert (512, 4, 1) not in {shape_of(command) for command in denoises(executor)}
    have = {(e["height"], e["batch"], e["sp"]) for e in raw["step"]}
    assert (512, 4, 2) in have and (512, 1, 1) in have and (512, 2, 1) not in have
    LatencyTable.from_dict(raw, "t")


def test_a_lost_rank_costs_no_entry():
    lost = iter([False] * 20 + [True] + [False] * 10_000)
    executor = FakeExecutor(fault=lambda command: "lost" if next(lost) else None)
    raw = document(executor, measure(executor))
    assert executor.reformed == 1
    assert "absent" not in raw
    assert all(entry["samples"] == 6 for entry in raw["step"])


def test_an_entry_that_loses_its_ranks_again_and_again_is_left_out():
    def fault(command):
        return "lost" if shape_of(command) == (512, 2, 2) else None

    executor = FakeExecutor(fault=fault)
    record = measure(executor)
    assert record.absent == {step_work(512, 512, 2, 2): "rank 0 was lost: killed"}
    assert executor.reformed == 3


def test_without_an_encode_nothing_can_be_measured():
    executor = FakeExecutor(fault=lambda command: "bug" if command.segment.kind is SegmentKind.ENCODE else None)
    with pytest.raises(LatencyTableError, match=r"encode batch 1 failed.*bug"):
        measure(executor)


def test_an_interrupted_profile_goes_on_where_it_was():
    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.done == 17:
            raise Interrupted

    record = Record()
    with pytest.raises(Interrupted):
        measure(FakeExecutor(), record=record, on_progress=interrupt)
    before = record.counts()
    assert 0 < sum(before.values()) < 6 * 11
    resumed = Record.from_dict(record.to_dict())
    second = FakeExecutor()
    measure(second, record=resumed)
    whole = measure(FakeExecutor())
    assert resumed.counts() == whole.counts() == dict.fromkeys(whole.counts(), 6)
    for work in whole.counts():
        assert resumed.spread(work).seconds == pytest.approx(whole.spread(work).seconds)


def test_progress_counts_to_the_end_and_tells_the_time_left():
    told = []
    measure(FakeExecutor(), on_progress=told.append)
    assert [progress.done for progress in told] == list(range(1, 3 * 11 + 1))
    assert all(progress.total == 33 for progress in told)
    assert told[-1].remaining_s == 0.0 and told[-1].complete
    assert told[20].remaining_s is not None
    assert "ms (cv 0.0%, n 2)" in told[0].in_words()


def test_a_budget_ends_an_entry_early_but_not_below_the_least_number_of_samples():
    executor = FakeExecutor()
    table = asyncio.run(measure_table(executor, [(256, 256), (2048, 2048)], Conditions(threads_per_rank=2), repeats=50))
    samples = {(e["height"], e["sp"]): e["samples"] for e in table.to_dict()["step"]}
    assert table.settings["threads_per_rank"] == 2
    # 29 ms for eight steps, and 165 ms for one, within 0.7 s.
    assert 20 <= samples[256, 1] <= 24
    assert samples[2048, 1] in (3, 4)
    assert "profile-0" in executor.released and "profile-decode" in executor.released


def test_ranks_on_different_devices_are_refused():
    executor = FakeExecutor()
    executor.device_names[1] = "Another GPU"
    with pytest.raises(LatencyTableError, match=r"rank 0: Some GPU 80GB, rank 1: Another GPU.*; fix: "):
        asyncio.run(measure_table(executor, [(256, 256)], Conditions()))


def test_an_entry_that_stops_fitting_loses_its_samples():
    record = Record()
    calls = iter(range(10_000))

    def fault(command):
        return OOM if shape_of(command) == (512, 2, 1) and next(calls) > 6 else None

    measure(FakeExecutor(fault=fault), record=record)
    assert step_work(512, 512, 2, 1) in record.absent
    assert step_work(512, 512, 2, 1) not in record.counts()
    assert {decode_work(512, 512), encode_work()} <= record.counts().keys()


def test_no_two_profiles_of_the_same_ranks_have_a_segment_of_the_same_number():
    executor = FakeExecutor()
    measure(executor)
    measure(executor)
    numbers = [command.segment.segment_id for command in executor.commands]
    assert len(numbers) == len(set(numbers))


def test_where_nothing_fits_the_reasons_are_told():
    def no_steps(command):
        return OOM if command.segment.kind is SegmentKind.DENOISE else None

    def no_decodes(command):
        return OOM if command.segment.kind is SegmentKind.DECODE else None

    for fault, where in ((no_steps, r"step 256x256 batch 1 sp 1"), (no_decodes, r"decode 256x256")):
        with pytest.raises(LatencyTableError, match=rf"nothing could be served: {where}: out of memory: .* 20.00 GiB"):
            asyncio.run(measure_table(FakeExecutor(fault=fault), [(256, 256), (512, 512)], Conditions()))
