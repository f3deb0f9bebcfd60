"""The timelines of a simulated benchmark are those of the runs that its summaries are about."""

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench.observed import read_events, segments_of
from tetriserve_backend.cli.bench.results import ResultFolder, runs_of
from tetriserve_backend.cli.bench.simulated import simulate_grid, write_traces_and_timelines
from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems
from tetriserve_backend.simulator.sweep import SweepSpec
from tetriserve_backend.simulator.trace import read_trace

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


def test_a_timeline_is_of_the_run_that_the_summary_is_about_and_its_trace_lies_beside_it(tmp_path):
    grid, folder = SweepSpec.model_validate(GRID), ResultFolder(tmp_path)
    runs = list(runs_of(grid))
    done = list(simulate_grid(grid, TABLE, folder, runs, processes=1, bound_cache=tmp_path / "bounds"))
    assert done == runs
    write_traces_and_timelines(grid, TABLE, folder, runs)
    for run in runs:
        slo_s = {request.id: request.slo_s for request in read_trace(folder.trace(run))}
        events = read_events(folder.timeline(run))
        assert find_problems(events, 4) == [] and find_trace_problems(events, slo_s) == []
        summary, segments = folder.read_summary(run), list(segments_of(events))
        busy_s = sum((timed.end_s - timed.start_s) * timed.segment.placement.sp_degree for timed in segments)
        assert busy_s == pytest.approx(summary.gpu_utilization * summary.gpus * summary.makespan_s, rel=1e-3)
