"""Rounds merge requests of one shape and degree where that takes less time and costs nobody a deadline (§5)."""

from dataclasses import replace

import pytest

from tests.unit.scheduler.conftest import check_plan, idle_view, make_request, make_table, serve, waiting
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.registry import make_policy

COLUMNS = {256: (0.1, 0.09), 512: (0.4, 0.2)}
# Two small images cost little more than one on one rank, and more than one after the other on two; large ones as much.
PAIRS = {(256, 1): 0.12, (256, 2): 0.2, (512, 2): 0.4}
ROUNDS = SchedulerSettings(policy="tetriserve")


@pytest.fixture(scope="module")
def table():
    return make_table(COLUMNS, 2, stage_s=0.0, pairs=PAIRS)


def plan_of(table, requests, *, world_size=2, **settings):
    """Ranks and steps of each denoise segment, by its requests; the first round starts at 0."""
    view = idle_view(requests, range(world_size), world_size, 0.0)
    plan = make_policy(ROUNDS.model_copy(update=settings), table, world_size).plan(view, 0.0)
    check_plan(plan, view, 0.0)
    return {
        e.request_ids: (len(e.placement.ranks), e.num_steps) for e in plan.assignments if e.kind is SegmentKind.DENOISE
    }


def small(name, *, steps=20, slo_s=100.0):
    return waiting(make_request(name, 256, slo_s=slo_s), steps=steps)


def test_a_batch_is_worth_it_where_it_takes_less_time_per_image_at_its_degree(table):
    model = CostModel(table, 2)
    assert model.batch_sizes_at(1, 256, 256) == (2,)
    assert model.batch_sizes_at(2, 256, 256) == () and model.batch_sizes_at(2, 512, 512) == ()


def test_a_pair_shares_one_group_and_a_third_request_gets_what_it_frees(table):
    trio = [small("a"), small("b"), small("c")]
    together = plan_of(table, trio)
    assert sorted(together) == [("a", "b"), ("c",)]
    assert sorted(plan_of(table, trio, max_batch=1)) == [("a",), ("b",)]


def test_the_freed_group_widens_another_request():
    table = make_table({256: (0.1, 0.1, 0.1), 512: (0.4, 0.2, 0.1)}, 4, stage_s=0.0, pairs={(256, 1): 0.11})
    requests = [small("a"), small("b"), waiting(make_request("large", 512, slo_s=4.5), steps=20)]
    assert plan_of(table, requests, world_size=4, max_batch=1)[("large",)][0] == 2
    assert plan_of(table, requests, world_size=4)[("a", "b")][0] == 1


def test_who_would_not_survive_a_batch_runs_alone(table):
    """Ten steps at 0.12 s take 1.2 s."""
    assert sorted(plan_of(table, [small("hurry", steps=10, slo_s=1.1), small("calm", steps=10)])) == [
        ("calm",),
        ("hurry",),
    ]
    assert ("hurry", "calm") in plan_of(table, [small("hurry", steps=10, slo_s=2.0), small("calm", steps=10)])


def test_a_request_with_few_steps_left_does_not_hold_up_another(table):
    assert sorted(plan_of(table, [small("last", steps=1), small("long")])) == [("last",), ("long",)]


def test_who_is_to_run_alone_and_other_shapes_stay_apart(table):
    alone = replace(small("a"), runs_alone=True)
    assert sorted(plan_of(table, [alone, small("b")])) == [("a",), ("b",)]
    large = waiting(make_request("large", 512), steps=20)
    assert all(len(ids) == 1 for ids in plan_of(table, [small("a"), large]))


def test_members_leave_when_they_are_done_and_all_is_done_in_time(table):
    requests = [make_request("a", 256, slo_s=6.0), make_request("b", 256, slo_s=6.0, num_steps=9)]
    run = serve(requests, table, 2, ROUNDS)
    assert run.all_on_time
    sizes = [s.batch_size for _, s in run.segments if s.kind is SegmentKind.DENOISE]
    assert 2 in sizes and sizes[-1] == 1


def test_batching_saves_requests_where_there_are_too_many(h100):
    requests = [make_request(f"r{n}", 256, arrival_s=0.07 * n, slo_s=1.8) for n in range(120)]
    alone, together = (
        serve(requests, h100, 8, ROUNDS.model_copy(update={"max_batch": size})).slo_attainment for size in (1, 4)
    )
    assert together > alone + 0.1
