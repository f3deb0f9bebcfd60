"""A sweep runs every cell of its grid with every variant."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from tests.unit.latency_table.test_format import H100
from tetriserve_backend.domain import ConfigurationError
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


def test_every_cell_is_run_by_every_variant_and_stays_below_its_bound(h100, tmp_path):
    results = list(run_sweep(SweepSpec(**SMALL), h100, bound_cache=tmp_path))
    assert len(results) == 2 * 2 * 2 and len(list(tmp_path.iterdir())) == len(results)
    for result in results:
        assert [summary.policy for summary in result.summaries] == ["fixed-sp1", "no-scale-up"]
        for summary in result.summaries:
            assert summary.requests == 8 and summary.on_time <= summary.bound_on_time
            assert summary.labels["mix"] == result.workload.mix and summary.labels["slo_scale"] == 1.0


def test_cells_differ_only_along_the_axes(h100):
    workloads = SweepSpec(**SMALL).cells()
    assert {w.requests for w in workloads} == {8}
    assert len({w.model_dump_json() for w in workloads}) == len(workloads)


def test_slo_classes_within_a_trace_are_one_entry_of_the_axis():
    (cell,) = SweepSpec(
        **{**SMALL, "slo_scales": [[1.0, 1.5]], "mixes": ["uniform"], "rates_per_minute": [12]}
    ).cells()[:1]
    assert cell.slo_scales == (1.0, 1.5) and cell.labels()["slo_scale"] is None


def test_processes_change_nothing_but_the_time(h100):
    spec = SweepSpec(**{**SMALL, "rates_per_minute": [24], "mixes": ["uniform"], "bound_time_limit_s": 0})
    alone, together = (list(run_sweep(spec, h100, processes=count)) for count in (1, 2))
    assert [[s.on_time for s in r.summaries] for r in alone] == [[s.on_time for s in r.summaries] for r in together]
    assert alone[0].summaries[0].bound is None


def test_a_caller_that_goes_away_keeps_its_own_processes(h100):
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60.0,))
    other.start()
    try:
        results = run_sweep(SweepSpec(**{**SMALL, "bound_time_limit_s": 0}), h100, processes=2)
        next(results)
        results.close()
        # A thread of the pool collects its processes; to join them here as well would be a race for their exit status.
        give_up_s = time.monotonic() + 10.0
        while multiprocessing.active_children() != [other] and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


CTRL_C_ELSEWHERE = """
import signal, sys, threading, time
from multiprocessing import active_children
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.sweep import SweepSpec, run_sweep

def interrupt():
    while len(active_children()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

if __name__ == "__main__":
    threading.Thread(target=interrupt, daemon=True).start()
    spec = SweepSpec(policies=["fixed-sp8"], workload={"requests": 10**8}, bound_time_limit_s=0)
    try:
        list(run_sweep(spec, LatencyTable.load(sys.argv[1]), processes=2))
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_ctrl_c_that_another_thread_gets_ends_it_too(tmp_path):
    (tmp_path / "script.py").write_text(CTRL_C_ELSEWHERE)
    command = [sys.executable, str(tmp_path / "script.py"), str(H100)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.communicate(timeout=60.0)[0] == "interrupted\n"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slow_ranks": {0: 0.0}}, "slow_ranks.0\n.*greater than 0"),
        ({"slow_ranks": {0: -3}}, "slow_ranks.0\n.*greater than 0"),
        ({"slow_ranks": {0: math.nan}}, "slow_ranks.0\n.*finite"),
        ({"slow_ranks": {-1: 2.0}}, "greater than or equal to 0"),
        ({"gpus": 4, "slow_ranks": {1: 2.0, 4: 2.0}}, "slow_ranks: expected ranks 0 to 3 of 4 GPUs, got 4"),
        ({"slowdown": math.inf}, "slowdown\n.*finite"),
        ({"noise_cv": math.inf}, "noise_cv\n.*finite"),
        ({"dispatch_seconds": math.inf}, "dispatch_seconds\n.*finite"),
        ({"rates_per_minute": [math.inf]}, "rates_per_minute.0\n.*finite"),
        ({"slo_scales": [math.inf]}, "slo_scales.0: .*finite"),
        ({"slo_scales": [[1.0, math.nan]]}, "slo_scales.1: .*finite"),
    ],
)
def test_a_number_that_no_world_has_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        SweepSpec(**{**SMALL, **change})


def test_a_slow_rank_that_the_table_does_not_have_is_refused_before_anything_is_run(h100):
    spec = SweepSpec(**SMALL, slow_ranks={7: 2.0, 99: 3.0})
    with pytest.raises(ConfigurationError, match="slow_ranks: expected ranks 0 to 7 of 8 GPUs, got 99"):
        next(run_sweep(spec, h100))


@pytest.mark.parametrize("change", [{"policies": []}, {"policy": ["x"]}, {"policies": [{"name": "x"}]}])
def test_a_wrong_grid_is_refused(change):
    with pytest.raises(ValidationError):
        SweepSpec(**{**SMALL, **change})
