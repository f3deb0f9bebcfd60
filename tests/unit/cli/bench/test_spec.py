"""A benchmark is read from YAML with assignments on top, and what is wrong in it is named."""

from pathlib import Path

import pytest
import yaml

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench.ranks import on_ranks
from tetriserve_backend.cli.bench.spec import SloBasis, Where, read_spec
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable

BENCHMARKS = Path(__file__).parents[4] / "profiling" / "benchmarks"
GRID = {
    "policies": ["tetris", "fixed-sp1"],
    "mixes": [{"256x256": 1, "1024x1024": 1}],
    "slo_scales": [1.5],
    "seeds": [1],
    "workload": {"prompts": ["a red fox"]},
}


FINITE = ("load", "trace_s", "hold_pace", "expect_speed_up", "pause_s", "give_up_s")


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
        ({"measure_again": True, "take_turns": True, "hold_pace": 1.5}, "measure_again: goes without hold_pace"),
        ({"trace_s": 10, "grid": {**GRID, "rates_per_minute": [6, 12]}}, "one rate only"),
        (
            {"hold_pace": 1.5, "latency_table": "a.json"},
            "hold_pace: only for live runs whose latency table is measured",
        ),
        ({"hold_pace": 0.9}, "hold_pace: .*greater than or equal to 1"),
        ({"hold_pace": 1.5, "server": {"model": {"device": "cuda"}}}, "hold_pace: only on CPU"),
        ({"grid": {**GRID, "slowdown": 1.5}}, "grid.slowdown: only the simulator"),
        ({"grid": {**GRID, "policies": ["tetris", {"name": "tetris", "scheduler": {}}]}}, "two are named 'tetris'"),
        ({"grid": {**GRID, "policies": ["fixed_sp1"]}}, "fixed_sp1: .*allowed: tetris"),
        ({"grid": {**GRID, "mixes": ["unform"]}}, r"grid\.mixes\.0: 'unform': expected uniform"),
        ({"grid": {**GRID, "mixes": [{"100x100": 1}]}}, r"grid\.mixes\.0: 100x100: .*multiples of 16 pixels$"),
        (
            {"grid": {**GRID, "workload": {"slo_s": {"100x100": 1}}}},
            r"grid\.workload\.slo_s: 100x100: .*multiples of 16",
        ),
        ({"grid": {**GRID, "rates_per_minute": [0]}}, r"grid\.rates_per_minute\.0: .*got 0$"),
        ({"grid": {**GRID, "seeds": []}}, r"grid\.seeds: expected at least one, got \[\]"),
        ({"grid": {**GRID, "mixes": []}}, r"grid\.mixes: expected at least one, got \[\]"),
        ({"grid": {**GRID, "slo_scales": []}}, r"grid\.slo_scales: expected at least one, got \[\]"),
        ({"grid": {**GRID, "slo_scales": [0]}}, r"slo_scales\.0: .*greater than 0"),
        ({"grid": {**GRID, "policies": ["a/b"]}}, r"grid\.policies\.0\.name: expected .*letters, digits"),
        ({"grid": {**GRID, "policies": [{"name": "../b", "scheduler": {}}]}}, r"policies\.0\.name: .*got '\.\./b'"),
        ({"measure_batches": [2]}, r"measure_batches: expected 1 among them.*got \[2\]"),
        ({"measure_batches": [1, 0]}, r"measure_batches\.1: .*greater than or equal to 1"),
        ({"grid": {**GRID, "workload": {}}}, r"grid\.workload\.prompts: expected texts .*got \[\]"),
        ({"grid": {**GRID, "workload": {"prompts": ["a fox", " "]}}}, r"grid\.workload\.prompts: .*none of them blank"),
        ({"grid": {**GRID, "noise_cv": 0.1}}, r"grid\.noise_cv: only the simulator"),
        (
            {"grid": {**GRID, "gpus": 4}, "server": {"executor": {"world_size": 2}}},
            r"grid\.gpus: expected server\.executor\.world_size, which is 2, got 4",
        ),
        *(({name: float("inf")}, f"^[^:]*: {name}: .*finite") for name in FINITE),
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
    assert cell.rate_per_minute == pytest.approx(60 * 0.5 * 8 / (gpu_s / 2), rel=1e-3)
    assert cell.requests == round(cell.rate_per_minute)


def test_deadlines_follow_from_what_the_ranks_that_serve_can_run(tmp_path, table):
    for ranks, degrees in ((1, (1,)), (3, (1, 2)), (4, (1, 2, 4)), (16, (1, 2, 4, 8))):
        settings = [f"grid.gpus={ranks}"]
        (cell,) = read_spec(write(tmp_path, slo="fastest"), settings).concrete(table).cells()[:1]
        for side in (256, 1024):
            step_s = min(table.step_s(side, side, degree) for degree in degrees)
            expected_s = table.encode_s() + 20 * step_s + table.decode_s(side, side)
            assert cell.slo_s[f"{side}x{side}"] == pytest.approx(expected_s, abs=1e-6)


def test_a_split_of_the_guidance_takes_two_ranks():
    document = small_table(moves={((0,), (2, 3)): 0.1}).to_dict()
    split = {"height": 512, "width": 512, "sp": 1, "batch": 1, "cfg": 2, "seconds": 0.001}
    table = LatencyTable.from_dict({**document, "step": [*document["step"], split]}, origin="t")
    assert on_ranks(table, 2).fastest_step_s(512, 512) == 0.001
    assert on_ranks(table, 1).fastest_step_s(512, 512) == table.step_s(512, 512, 1)
    assert on_ranks(table, 1).world_size == 1


def test_a_rate_that_follows_from_the_load_is_never_rounded_to_nothing(tmp_path, table):
    rates = [
        read_spec(write(tmp_path, load=load), []).concrete(table).rates_per_minute[0] for load in (0.5, 5e-6, 5e-9)
    ]
    assert rates[1:] == pytest.approx([1e-5 * rates[0], 1e-8 * rates[0]], rel=1e-3) and min(rates) > 0


@pytest.mark.parametrize("values", [{"load": 1e308}, {"load": 1e300, "trace_s": 1e300}])
def test_a_load_out_of_all_reason_is_an_error(tmp_path, table, values):
    spec = read_spec(write(tmp_path, **values), [])
    with pytest.raises(ConfigurationError, match="load, trace_s: expected values that make a rate"):
        spec.concrete(table)


def test_without_any_of_that_the_grid_stays_as_it_is(tmp_path, table):
    spec = read_spec(write(tmp_path), [])
    assert spec.slo is SloBasis.GIVEN and spec.concrete(table) == spec.grid


def test_ranks_that_run_free_need_no_other_file(tmp_path):
    """As `live-2ranks.yaml` and the README say it."""
    spec = read_spec(BENCHMARKS / "live-2ranks.yaml", ["hold_pace=null", "measure_again=true"])
    assert spec.expect_speed_up == 1.7 and spec.paced_server(tmp_path / "pace.json").model.pace_table is None


def test_what_only_the_simulator_can_do_is_allowed_there_without_prompts(tmp_path):
    grid = {**GRID, "gpus": 4, "noise_cv": 0.1, "slowdown": 1.5, "workload": {}}
    assert read_spec(write(tmp_path, where="simulator", latency_table="t.json", grid=grid), []).grid.gpus == 4


def test_names_with_spaces_and_signs_are_names(tmp_path):
    named = [{"name": name, "scheduler": {}} for name in ("table as it is", "no-scale-up", "max_batch=1", "0.3 s")]
    assert len(read_spec(write(tmp_path, grid={**GRID, "policies": named}), []).grid.variants) == 4


def test_live_traces_are_for_the_ranks_that_serve(tmp_path, table):
    """Those that the grid or the server names, else all that the table is of."""
    rates = {}
    for ranks, settings in ((8, []), (4, ["grid.gpus=4"]), (2, ["server.executor.world_size=2"])):
        spec = read_spec(write(tmp_path, load=0.5), settings)
        rates[ranks] = spec.concrete(table).rates_per_minute[0]
        wanted = None if ranks == 8 else ranks
        assert spec.unpaced_server().executor.world_size == wanted == spec.paced_server(tmp_path).executor.world_size
    assert rates[8] == pytest.approx(2 * rates[4], abs=0.02) and rates[8] == pytest.approx(4 * rates[2], abs=0.04)


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
        assert set(spec.grid.shapes) <= set(table.resolutions)
        assert spec.concrete(table).cells()
