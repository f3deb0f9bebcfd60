"""Requests share their steps where that saves GPU-seconds and costs nobody a deadline."""

from dataclasses import replace

import pytest

from tests.unit.scheduler.conftest import idle_view, make_request, make_table, serve, waiting
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.registry import make_policy

COLUMNS = {256: (0.1, 0.09), 512: (0.4, 0.2)}
# Two small images cost little more than one; two large ones as much as one after the other.
PAIRS = {(256, 1): 0.12, (256, 2): 0.11, (512, 2): 0.4}
TETRIS = SchedulerSettings(policy="tetris")


@pytest.fixture(scope="module")
def table():
    return make_table(COLUMNS, 2, stage_s=0.0, pairs=PAIRS)


def batches_of(table, requests, *, now_s=0.0, settings=TETRIS):
    made = make_policy(settings, table, 2).plan(idle_view(requests, range(2), 2, now_s), now_s)
    return [(e.request_ids, e.num_steps) for e in made.assignments if e.kind is SegmentKind.DENOISE]


def test_only_batches_that_save_gpu_seconds_are_offered(table):
    model = CostModel(table, 2)
    assert model.batch_sizes(256, 256) == (2,) and model.batch_sizes(512, 512) == ()
    assert model.of_shape(256, 256, batch=2).step_s == {1: 0.12, 2: 0.11}


def test_offered_batches_follow_the_tables():
    tables = LatencyTables({"": make_table(COLUMNS, 2)})
    model = CostModel(tables, 2)
    assert model.batch_sizes(256, 256) == ()
    tables.put("", make_table(COLUMNS, 2, pairs=PAIRS))
    assert model.batch_sizes(256, 256) == (2,)


def test_two_requests_at_different_steps_share_them_until_the_first_is_done(table):
    pair = [waiting(make_request("a", 256), steps=20), waiting(make_request("b", 256), steps=2)]
    assert batches_of(table, pair) == [(("a", "b"), 2)]
    assert sorted(batches_of(table, pair, settings=TETRIS.model_copy(update={"max_batch": 1}))) == [
        (("a",), 2),
        (("b",), 2),
    ]


def test_other_shapes_and_other_models_stay_apart():
    tables = LatencyTables({name: make_table(COLUMNS, 2, stage_s=0.0, pairs=PAIRS) for name in ("x", "y")})
    mine, yours = (waiting(replace(make_request(name, 256), model=name), steps=9) for name in ("x", "y"))
    assert sorted(ids for ids, _ in batches_of(tables, [mine, yours])) == [("x",), ("y",)]
    large = waiting(replace(make_request("large", 512), model="x"), steps=9)
    assert ("large", "x") not in [ids for ids, _ in batches_of(tables, [mine, large])]


def test_who_is_to_run_alone_is_in_no_batch(table):
    pair = [
        replace(waiting(make_request("a", 256), steps=9), runs_alone=True),
        waiting(make_request("b", 256), steps=9),
    ]
    third = waiting(make_request("c", 256), steps=9)
    assert sorted(ids for ids, _ in batches_of(table, pair)) == [("a",), ("b",)]
    assert ("b", "c") in [ids for ids, _ in batches_of(table, [*pair, third])]


def test_who_would_be_late_in_a_batch_runs_alone(table):
    hurry, calm = (
        waiting(make_request("hurry", 256, slo_s=1.05), steps=10),
        waiting(make_request("calm", 256), steps=10),
    )
    assert sorted(ids for ids, _ in batches_of(table, [hurry, calm])) == [("calm",), ("hurry",)]
    eased = waiting(make_request("hurry", 256, slo_s=1.25), steps=10)
    assert batches_of(table, [eased, calm])[0][0] == ("hurry", "calm")
    careful = TETRIS.model_copy(update={"batch_reserve": 0.25})
    assert sorted(ids for ids, _ in batches_of(table, [eased, calm], settings=careful)) == [("calm",), ("hurry",)]
    at_ease = waiting(make_request("hurry", 256, slo_s=1.55), steps=10)
    assert batches_of(table, [at_ease, calm], settings=careful)[0][0] == ("hurry", "calm")


def test_a_batch_that_costs_more_than_it_saves_keeps_no_other_from_forming():
    pairs = {(256, 1): 0.12, (512, 1): 0.7, (512, 2): 0.5}
    table = make_table({256: (0.1, 0.09), 512: (0.4, 0.25)}, 2, stage_s=0.0, pairs=pairs)
    calm = [waiting(make_request(name, 256), steps=10) for name in ("a", "b")]
    # In time together only on two ranks, which is dearer than a rank for each of them.
    hurried = [waiting(make_request(name, 512, slo_s=2.52), steps=5) for name in ("x", "y")]
    plan = make_policy(TETRIS, table, 3).plan(idle_view([*hurried, *calm], range(3), 3, 0.0), 0.0)
    assert sorted(work.request_ids for work in plan.assignments if work.kind is SegmentKind.DENOISE) == [
        ("a", "b"),
        ("x",),
        ("y",),
    ]


@pytest.mark.parametrize("number", [12, 30, 40])
def test_where_many_wait_for_few_ranks_there_are_batches(table, number):
    crowd = [waiting(make_request(f"r{index}", 256, slo_s=2.5 + 0.5 * index), steps=9) for index in range(number)]
    assert batches_of(table, crowd)[0][0] == ("r0", "r1")


def test_one_that_comes_later_joins_at_the_end_of_a_segment_and_all_is_done_in_time(table):
    requests = [make_request("a", 256, slo_s=4.0), make_request("b", 256, arrival_s=0.5, slo_s=4.0)]
    run = serve(requests, table, 2, TETRIS)
    assert run.all_on_time
    sizes = [s.batch_size for _, s in run.segments if s.kind is SegmentKind.DENOISE]
    assert sizes[0] == 1 and 2 in sizes and sizes[-1] == 1


def test_batching_saves_requests_where_there_are_too_many(h100):
    requests = [make_request(f"r{n}", 256, arrival_s=0.07 * n, slo_s=1.6) for n in range(120)]
    alone, together = (
        serve(requests, h100, 8, TETRIS.model_copy(update={"max_batch": size})).slo_attainment for size in (1, 4)
    )
    assert together > alone + 0.1
