"""The situation of the paper's Figures 1 and 6: what no fixed degree can do, changing degrees can."""

import pytest

from tests.unit.scheduler.conftest import make_request, make_table, serve
from tetriserve_backend.scheduler.config import SchedulerSettings

SMALL, MEDIUM, LARGE = 256, 512, 1024
STEP_S = {
    SMALL: (1.00, 1.05, 1.10),  # bound by launches: more ranks make it slower
    MEDIUM: (2.00, 1.10, 0.80),
    LARGE: (4.00, 2.10, 1.10),  # bound by compute: nearly linear
}
REQUESTS = [
    make_request("medium", MEDIUM, arrival_s=0.0, slo_s=6.0, num_steps=5),
    make_request("small", SMALL, arrival_s=1.0, slo_s=6.0, num_steps=5),
    make_request("large", LARGE, arrival_s=2.0, slo_s=9.5, num_steps=5),
]


def serve_with(policy: str):
    settings = SchedulerSettings(policy=policy, step_granularity=2)
    return serve(REQUESTS, make_table(STEP_S, world_size=4), 4, settings, lead_s=0.0)


@pytest.mark.parametrize("policy", ["fixed-sp1", "fixed-sp2", "fixed-sp4", "rssp", "fcfs-optimal-shape"])
def test_every_fixed_degree_misses_a_deadline(policy):
    assert not serve_with(policy).all_on_time


def test_changing_degrees_meets_all_deadlines():
    run = serve_with("tetriserve")
    assert run.all_on_time
    assert set(run.degrees("small")) == {1}
    assert len(set(run.degrees("medium"))) > 1
    assert len(set(run.degrees("large"))) > 1


def test_each_deadline_could_be_met_alone():
    """The deadlines are not impossible: alone on the machine, each request makes its own at its best degree."""
    table = make_table(STEP_S, world_size=4)
    for request in REQUESTS:
        run = serve([request], table, 4, SchedulerSettings(policy="fcfs-optimal-shape"), lead_s=0.0)
        assert run.all_on_time
