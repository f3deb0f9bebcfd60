"""The timelines of a simulated benchmark are those of the runs that its summaries are about."""

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench.observed import read_events, segments_of
from tetriserve_backend.cli.bench.results import ResultFolder, runs_of
from tetriserve_backend.cli.bench.simulated import simulate_grid, write_timelines
from tetriserve_backend.simulator.sweep import SweepSpec

TABLE = small_table(dispatch_s=0.001)
GRID = {
    "policies": [
        {"name": "short", "scheduler": {"policy": "tetriserve"}, "engine": {"lead_s": 0.0}},
        {"name": "long", "scheduler": {"policy": "tetriserve"}, "engine": {"lead_s": 0.2}},
    ],
    "mixes": [{"256x256": 1, "512x512": 1}],
    "slo_scales": [1.0],
    "rates_per_minute": [120],
    "seeds": [1],
    "bound_time_limit_s": 0,
    "workload": {"requests": 12},
    "slow_ranks": {0: 1.5},
    "slowdown": 1.3,
}


def test_a_timeline_is_of_the_run_that_the_summary_is_about(tmp_path):
    grid, folder = SweepSpec.model_validate(GRID), ResultFolder(tmp_path)
    runs = list(runs_of(grid))
    done = list(simulate_grid(grid, TABLE, folder, runs, processes=1, bound_cache=tmp_path / "bounds"))
    assert done == runs
    write_timelines(grid, TABLE, folder, runs)
    for run in runs:
        summary, segments = folder.read_summary(run), list(segments_of(read_events(folder.timeline(run))))
        busy_s = sum((timed.end_s - timed.start_s) * timed.segment.placement.sp_degree for timed in segments)
        assert busy_s == pytest.approx(summary.gpu_utilization * summary.gpus * summary.makespan_s, rel=1e-3)
