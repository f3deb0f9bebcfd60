"""A benchmark is read from YAML with assignments on top, and what is wrong in it is named."""

from pathlib import Path

import pytest
import yaml

from tetriserve_backend.cli.bench.spec import SloBasis, Where, read_spec
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable

BENCHMARKS = Path(__file__).parents[4] / "profiling" / "benchmarks"
GRID = {
    "policies": ["tetris", "fixed-sp1"],
    "mixes": [{"256x256": 1, "1024x1024": 1}],
    "slo_scales": [1.5],
    "seeds": [1],
}


def write(folder, **values):
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({"grid": GRID, **values}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    tables = BENCHMARKS.parents[1] / "model_repository/denoise/latency_tables"
    return LatencyTable.load(tables / "flux1-dev-8xh100.latency.json")


def test_an_assignment_wins_over_the_file(tmp_path):
    spec = read_spec(write(tmp_path, pause_s=1.0), ["pause_s=2", "grid.seeds=[3, 4]"])
    assert spec.pause_s == 2.0 and spec.grid.seeds == (3, 4) and spec.where is Where.LIVE


def test_a_table_is_looked_for_beside_the_file(tmp_path):
    spec = read_spec(write(tmp_path, where="simulator", latency_table="../some.latency.json"), [])
    assert spec.latency_table == str(tmp_path.parent / "some.latency.json")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"where": "simulator"}, "latency_table: the simulator needs one"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"grid": {**GRID, "seeds": ["one"]}}, "grid.seeds.0: .*'one'"),
        ({"server": {"scheduler": {"policy": "rssp"}}}, "scheduler: not settings of a benchmark's server"),
        ({"load": 0.5, "grid": {**GRID, "mixes": ["uniform", "skewed"]}}, "one mix only"),
        ({"measure_again": True}, "measure_again: needs take_turns"),
        ({"measure_again": True, "take_turns": True, "latency_table": "a.json"}, "goes without latency_table"),
        ({"trace_s": 10, "grid": {**GRID, "rates_per_minute": [6, 12]}}, "one rate only"),
        (
            {"hold_pace": 1.5, "latency_table": "a.json"},
            "hold_pace: only for live runs whose latency table is measured",
        ),
        ({"hold_pace": 0.9}, "hold_pace: .*greater than or equal to 1"),
        ({"hold_pace": 1.5, "server": {"model": {"device": "cuda"}}}, "hold_pace: only on CPU"),
        ({"expect_speed_up": 1.7}, "expect_speed_up: goes with hold_pace"),
        ({"grid": {**GRID, "slowdown": 1.5}}, "grid.slowdown: only the simulator"),
        ({"grid": {**GRID, "policies": ["tetris", {"name": "tetris", "scheduler": {}}]}}, "two are named 'tetris'"),
        ({"grid": {**GRID, "policies": ["fixed_sp1"]}}, "fixed_sp1: .*allowed: tetris"),
        ({"grid": {**GRID, "mixes": ["unform"]}}, "mix: .*'unform'"),
        ({"grid": {**GRID, "rates_per_minute": [0]}}, "rate_per_minute: .*got 0"),
        ({"measure_batches": [2]}, "batches: .*1"),
        ({"server": {"models": [{"name": "a", "model": {"path": "demo-flux"}}]}}, "models: a benchmark serves one"),
        ({"server": {"model": {"pace_table": "a.json"}}}, "pace_table: not a setting of a benchmark's server"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, values, named):
    with pytest.raises(ConfigurationError, match=named) as refused:
        read_spec(write(tmp_path, **values), [])
    assert "Value error" not in str(refused.value)


def test_deadlines_rate_and_length_follow_from_the_table(tmp_path, table):
    spec = read_spec(write(tmp_path, slo="fastest", load=0.5, trace_s=60), [])
    grid = spec.concrete(table)
    (cell,) = grid.cells()
    fastest_s = table.encode_s() + 20 * table.fastest_step_s(256, 256) + table.decode_s(256, 256)
    assert cell.slo_s["256x256"] == pytest.approx(fastest_s, abs=1e-6) and cell.slo_scales == (1.5,)
    gpu_s = sum(
        table.encode_s() + 20 * table.step_s(side, side, 1) + table.decode_s(side, side) for side in (256, 1024)
    )
    assert cell.rate_per_minute == pytest.approx(60 * 0.5 * 8 / (gpu_s / 2), abs=0.01)
    assert cell.requests == round(cell.rate_per_minute)


def test_without_any_of_that_the_grid_stays_as_it_is(tmp_path, table):
    spec = read_spec(write(tmp_path), [])
    assert spec.slo is SloBasis.GIVEN and spec.concrete(table) == spec.grid


def test_each_server_gets_its_policy_and_the_table_of_the_benchmark(tmp_path):
    spec = read_spec(write(tmp_path, server={"executor": {"world_size": 3}}), ["grid.engine.lead_s=0.1"])
    files = (tmp_path / "t.json", tmp_path / "pace.json", tmp_path / "t.timeline.json")
    settings = spec.server_settings(spec.grid.variants[1], *files)
    assert settings.scheduler.policy == "fixed-sp1" and settings.engine.lead_s == 0.1
    assert settings.executor.world_size == 3 and settings.latency_table == str(tmp_path / "t.json")
    assert settings.model.pace_table is None


def test_the_measured_table_has_the_batches_that_servers_may_form(tmp_path):
    assert read_spec(write(tmp_path), []).profile.batches == (1,)
    assert read_spec(write(tmp_path, measure_batches=[1, 2]), []).profile.batches == (1, 2)


def test_ranks_that_hold_a_pace_are_told_its_table(tmp_path):
    spec = read_spec(write(tmp_path, hold_pace=1.5, server={"model": {"path": "demo-flux-bench"}}), [])
    files = (tmp_path / "t.json", tmp_path / "pace.json", tmp_path / "t.timeline.json")
    for settings in (spec.server_settings(spec.grid.variants[0], *files), spec.paced_server(files[1])):
        assert settings.model.pace_table == str(tmp_path / "pace.json") and settings.model.path == "demo-flux-bench"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_benchmarks_that_come_along_can_be_read_and_their_tables_are_there(path):
    spec = read_spec(path, [])
    if spec.latency_table is not None:
        table = LatencyTable.load(spec.latency_table)
        assert set(spec.shapes) <= set(table.resolutions)
        assert spec.concrete(table).cells()
