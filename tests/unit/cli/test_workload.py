"""The demo's load: four sizes, deadlines from the table, and the load that was asked for."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tetriserve_backend.cli.workload import (
    LoadShape,
    Transport,
    choose_sizes,
    fit_into_span,
    plan_workload,
    write_trace,
)
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_client import Size


def make_table(*shapes: tuple[int, int]) -> LatencyTable:
    steps: list[dict[str, Any]] = [
        {"height": h, "width": w, "batch": 1, "sp": sp, "seconds": h * w / 1e7 / sp + 1e-3}
        for h, w in shapes
        for sp in (1, 2)
    ]
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": "m",
            "device": "d",
            "world_size": 2,
            "dtype": "float32",
            "source": "analytic",
            "software": {},
            "step": steps,
            "encode": [{"batch": 1, "seconds": 0.01}],
            "decode": [{"height": h, "width": w, "seconds": 0.02} for h, w in shapes],
            "dispatch_seconds": 0.001,
        },
        origin="test",
    )


TABLE = make_table((128, 128), (256, 256), (512, 512))


def test_there_are_four_sizes_and_one_is_not_square() -> None:
    sizes = choose_sizes(TABLE.resolutions)
    assert len(sizes) == 4
    assert sum(size.width != size.height for size in sizes) == 1


@pytest.mark.parametrize(
    "shapes", [[(64, 64), (96, 96)], [(256, 256), (4096, 4096)], [(256, 512), (1024, 1024)], [(128, 128)]]
)
def test_every_size_is_one_that_the_table_covers(shapes: list[tuple[int, int]]) -> None:
    table = make_table(*shapes)
    for size in choose_sizes(table.resolutions):
        table.check_resolution(size.height, size.width)


def test_same_seed_gives_the_same_load_and_another_seed_another() -> None:
    def arrivals(seed: int) -> list[tuple[float, float | None]]:
        return [(item.arrival_s, item.request.slo_s) for item in plan_workload(TABLE, 2, LoadShape(seed=seed))]

    assert arrivals(1) == arrivals(1)
    assert arrivals(1) != arrivals(2)


def test_load_fills_the_asked_part_of_the_gpus() -> None:
    shape = LoadShape(num_requests=2000, num_steps=20, utilization=0.5)
    planned = plan_workload(TABLE, 2, shape)
    work = sum(
        TABLE.encode_s()
        + 20 * TABLE.step_s(p.size.height, p.size.width, 1)
        + TABLE.decode_s(p.size.height, p.size.width)
        for p in planned
    )
    assert work / (2 * planned[-1].arrival_s) == pytest.approx(0.5, rel=0.1)


def test_requests_are_mixed_and_each_deadline_can_be_met() -> None:
    planned = plan_workload(TABLE, 2, LoadShape(num_steps=20))
    assert len(planned) == 12
    assert {item.transport for item in planned} == set(Transport)
    assert len({item.size for item in planned}) == 4
    assert len({item.request.request_id for item in planned}) == 12
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(planned))
    for item in planned:
        fastest = TABLE.encode_s() + 20 * TABLE.fastest_step_s(item.size.height, item.size.width)
        assert item.request.slo_s is not None
        assert item.request.slo_s > fastest + TABLE.decode_s(item.size.height, item.size.width)


def test_trace_says_what_is_sent(tmp_path: Path) -> None:
    planned = plan_workload(TABLE, 2, LoadShape(num_steps=20))
    write_trace(planned, tmp_path / "t.trace.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "t.trace.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [item.request.request_id for item in planned]
    assert [Size(line["width"], line["height"]) for line in lines] == [item.size for item in planned]
    assert all(line["slo_s"] > 0 and line["num_inference_steps"] == 20 for line in lines)


@pytest.mark.parametrize("span_s", [3.0, 12.0, 60.0])
def test_load_takes_about_the_time_that_it_should(span_s: float) -> None:
    table = make_table((256, 256), (512, 512), (768, 768), (1024, 1024))
    sizes, num_steps = fit_into_span(table, 2, LoadShape(span_s=span_s))
    work = 0.0
    for height, width in ((size.height, size.width) for size in sizes):
        work += table.encode_s() + num_steps * table.step_s(height, width, 1) + table.decode_s(height, width)
    assert 4 <= num_steps <= 20
    assert 3 * work / (2 * 0.7) <= span_s


def test_steps_that_are_asked_for_are_taken() -> None:
    sizes, num_steps = fit_into_span(TABLE, 2, LoadShape(num_steps=50, span_s=0.001))
    assert num_steps == 50
    assert max(size.height for size in sizes) == 512


@pytest.mark.parametrize("slowness", [1.0, 3.0, 20.0])
def test_there_are_four_sizes_however_slow_the_ranks_are(slowness: float) -> None:
    document = make_table((256, 256), (512, 512), (768, 768), (1024, 1024)).to_dict()
    for entry in document["step"]:
        entry["seconds"] *= slowness
    planned = plan_workload(LatencyTable.from_dict(document, origin="test"), 2, LoadShape())
    assert len({item.size for item in planned}) == 4
