"""A sweep runs every cell of its grid with every variant."""

import pytest
from pydantic import ValidationError

from tetriserve_backend.simulator.sweep import SweepSpec, run_sweep

SMALL = {
    "policies": [
        "fixed-sp1",
        {"name": "no-scale-up", "scheduler": {"policy": "tetriserve", "elastic_scale_up": False}},
    ],
    "mixes": ["uniform", "256x256"],
    "slo_scales": [1.0],
    "rates_per_minute": [12, 24],
    "seeds": [1, 2],
    "workload": {"requests": 8},
}


def test_every_cell_is_run_by_every_variant_and_stays_below_its_bound(published_table, tmp_path):
    results = list(run_sweep(SweepSpec(**SMALL), published_table, bound_cache=tmp_path))
    assert len(results) == 2 * 2 * 2 and len(list(tmp_path.iterdir())) == len(results)
    for result in results:
        assert [summary.policy for summary in result.summaries] == ["fixed-sp1", "no-scale-up"]
        for summary in result.summaries:
            assert summary.requests == 8 and summary.on_time <= summary.bound_on_time
            assert summary.labels["mix"] == result.workload.mix and summary.labels["slo_scale"] == 1.0


def test_cells_differ_only_along_the_axes(published_table):
    workloads = SweepSpec(**SMALL).cells()
    assert {w.requests for w in workloads} == {8}
    assert len({w.model_dump_json() for w in workloads}) == len(workloads)


def test_slo_classes_within_a_trace_are_one_entry_of_the_axis():
    (cell,) = SweepSpec(
        **{**SMALL, "slo_scales": [[1.0, 1.5]], "mixes": ["uniform"], "rates_per_minute": [12]}
    ).cells()[:1]
    assert cell.slo_scales == (1.0, 1.5) and cell.labels()["slo_scale"] is None


def test_processes_change_nothing_but_the_time(published_table):
    spec = SweepSpec(**{**SMALL, "rates_per_minute": [24], "mixes": ["uniform"], "bound_time_limit_s": 0})
    alone, together = (list(run_sweep(spec, published_table, processes=count)) for count in (1, 2))
    assert [[s.on_time for s in r.summaries] for r in alone] == [[s.on_time for s in r.summaries] for r in together]
    assert alone[0].summaries[0].bound is None


@pytest.mark.parametrize("change", [{"policies": []}, {"policy": ["x"]}, {"policies": [{"name": "x"}]}])
def test_a_wrong_grid_is_refused(change):
    with pytest.raises(ValidationError):
        SweepSpec(**{**SMALL, **change})
