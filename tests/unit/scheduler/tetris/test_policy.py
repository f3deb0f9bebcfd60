"""Who is saved, who waits, who works ahead: the policy seen from outside."""

import random
from statistics import fmean

import pytest

from tests.unit.scheduler.conftest import (
    SLO_S,
    check_plan,
    denoise_of,
    idle_view,
    make_request,
    make_table,
    serve,
    waiting,
)
from tetriserve_backend.domain import Placement, SegmentKind
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView
from tetriserve_backend.simulator.virtual_world import RankFailure

TETRIS = SchedulerSettings(policy="tetris")
# Small images hardly gain from more ranks, large ones gain well: 20 steps take 16, 8.4, 4.4 or 2.4 s.
COLUMNS = {256: (0.1, 0.09, 0.085, 0.08), 1024: (0.8, 0.42, 0.22, 0.12)}


@pytest.fixture(scope="module")
def table():
    return make_table(COLUMNS, 8, stage_s=0.0)


def plan(table, requests, *, now_s=0.0, ranks=range(8), settings=TETRIS, busy=()):
    """The plan for a view in which the ranks of `busy` come back at the times it gives."""
    views = [RankView(rank, dict(busy).get(rank, now_s), int(rank in dict(busy))) for rank in ranks]
    view = SchedulerView(tuple(requests), tuple(views), 8, 0.0)
    made = make_policy(settings, table, 8).plan(view, now_s)
    check_plan(made, view, now_s)
    return made


def without_idle_work(**more):
    return SchedulerSettings(policy="tetris", elastic_scale_up=False, **more)


@pytest.mark.parametrize("seed", [3, 147])
def test_a_clock_that_has_run_for_a_year_changes_no_plan(table, seed):
    """The ends of pieces and deadlines fall together, and are told apart by less than such a clock shows."""
    rng = random.Random(seed)
    crowd = [(rng.choice([256, 1024]), rng.randrange(1, 64) / 4) for _ in range(12) for _ in range(2)]
    plans = [
        denoise_of(
            plan(
                table,
                [
                    waiting(make_request(f"r{number}", side, arrival_s=now_s, slo_s=slo_s), steps=20)
                    for number, (side, slo_s) in enumerate(crowd)
                ],
                now_s=now_s,
            )
        )
        for now_s in (0.0, 2.0**25)
    ]
    assert plans[0] == plans[1]


def test_more_shapes_than_there_was_room_for_at_first_are_planned(h100):
    policy = make_policy(TETRIS, h100, 8)
    for number in range(20):
        request = waiting(make_request(f"r{number}", 256 + 16 * number))
        view = idle_view([request], range(8), 8, 0.0)
        assert policy.forecast(view, f"r{number}", 0.0) is not None
        assert policy.plan(view, 0.0).assignments


def test_a_request_gets_the_narrowest_degree_that_meets_its_deadline(table):
    for slo_s, degree in [(17.0, 1), (9.0, 2), (4.6, 4), (2.5, 8)]:
        made = plan(table, [waiting(make_request("r", 1024, slo_s=slo_s), steps=20)], settings=without_idle_work())
        ((ranks, _),) = denoise_of(made).values()
        assert len(ranks) == degree


def test_ranks_that_the_plan_leaves_idle_widen_what_runs(table):
    made = plan(table, [waiting(make_request("r", 1024, slo_s=17.0), steps=20)])
    assert len(denoise_of(made)["r"][0]) == 8


def test_a_late_request_does_not_delay_one_that_can_be_saved(table):
    late = waiting(make_request("late", 1024, arrival_s=-10.0, slo_s=1.0), steps=20)
    feasible = waiting(make_request("feasible", 1024, slo_s=2.5), steps=20)
    assert list(denoise_of(plan(table, [late, feasible]))) == ["feasible"]
    run = serve(
        [make_request("late", 1024, slo_s=0.5), make_request("feasible", 1024, arrival_s=0.05, slo_s=2.9)],
        table, 8, TETRIS,
    )  # fmt: skip
    assert run.outcomes["feasible"].on_time and run.outcomes["late"].outcome == "finish"


def test_a_doomed_request_is_not_preferred_for_its_early_deadline(table):
    doomed = waiting(make_request("doomed", 1024, slo_s=1.0), steps=20)
    small = [waiting(make_request(f"small{index}", 256, slo_s=2.2), steps=20) for index in range(8)]
    assert sorted(denoise_of(plan(table, [doomed, *small]))) == [f"small{index}" for index in range(8)]


def test_a_dear_request_is_given_up_where_that_saves_more(table):
    """Eight small ones and a large one that needs all ranks at the same time: not both."""
    dear = waiting(make_request("dear", 1024, slo_s=2.45), steps=20)
    small = [waiting(make_request(f"small{index}", 256, slo_s=2.2), steps=20) for index in range(8)]
    assert sorted(denoise_of(plan(table, [dear, *small]))) == [f"small{index}" for index in range(8)]


def test_a_wide_group_gets_its_hole(table):
    """Two ranks come back in 0.3 s; the wide request then needs all: nobody may sit on the six others beyond that."""
    wide = waiting(make_request("wide", 1024, slo_s=2.85), steps=20)
    narrow = waiting(make_request("narrow", 256, slo_s=60.0), steps=30)
    made = plan(table, [wide, narrow], busy={6: 0.3, 7: 0.3}.items())
    ends_s = {
        request_id: steps * COLUMNS[side][len(ranks).bit_length() - 1]
        for request_id, side in (("wide", 1024), ("narrow", 256))
        for ranks, steps in [denoise_of(made).get(request_id, ((0,), 0))]
    }
    assert all(end_s <= 0.3 + 1e-9 for end_s in ends_s.values())


def test_a_step_that_would_outlast_its_piece_of_the_plan_waits_where_it_would_cost_a_deadline(table):
    """The first needs all ranks once the others are back; a step of the second on the idle four takes longer."""
    tight = RequestView(
        make_request("tight", 1024, slo_s=1.35), SegmentKind.DENOISE, 10, 0.1, Placement((4, 5, 6, 7)), 1
    )
    loose = waiting(make_request("loose", 1024, slo_s=4.2), steps=20)
    busy = dict.fromkeys((4, 5, 6, 7), 0.1).items()
    made = plan(table, [tight, loose], busy=busy)
    assert made.assignments == () and made.wake_at_s == pytest.approx(0.1)
    relaxed = RequestView(
        make_request("tight", 1024, slo_s=1.5), SegmentKind.DENOISE, 10, 0.1, Placement((4, 5, 6, 7)), 1
    )
    assert list(denoise_of(plan(table, [relaxed, loose], busy=busy))) == ["loose"]


def test_work_sent_ahead_is_planned_from_when_its_ranks_are_free(table):
    """All ranks come back in 0.1 s: a plan that began now would find 1.35 s enough for the large one."""
    tight = waiting(make_request("tight", 1024, slo_s=1.25), steps=10)
    small = [waiting(make_request(f"small{index}", 256, slo_s=2.2), steps=20) for index in range(8)]
    ranks = tuple(RankView(rank, 0.1, 1) for rank in range(8))
    view = SchedulerView((tight, *small), ranks, 8, 0.1)
    made = make_policy(TETRIS, table, 8).plan(view, 0.0)
    assert "tight" not in denoise_of(made)


def test_a_wide_request_meets_its_deadline_among_narrow_ones(table):
    narrow = [make_request(f"n{index}", 256, arrival_s=0.01 * index, slo_s=30.0) for index in range(24)]
    requests = [*narrow, make_request("wide", 1024, arrival_s=1.0, slo_s=3.0)]
    run = serve(requests, table, 8, TETRIS)
    assert run.all_on_time
    assert 8 in run.degrees("wide")


def test_a_request_that_the_plan_starts_later_works_ahead_on_idle_ranks(table):
    """The tight one takes four ranks; the other three have all the time in the world and start nevertheless."""
    tight = waiting(make_request("tight", 1024, slo_s=4.6), steps=20)
    patient = [waiting(make_request(f"p{index}", 256, slo_s=500.0), steps=20) for index in range(4)]
    assert len(denoise_of(plan(table, [tight, *patient]))) == 5
    ranks = sum(len(where) for where, _ in denoise_of(plan(table, [tight, *patient])).values())
    assert ranks == 8


def test_late_requests_run_when_capacity_frees_up(table):
    """Under overload late ones wait, but every one of them is served once the rush is over."""
    rng = random.Random(5)
    requests = [
        make_request(f"r{index}", rng.choice([256, 1024]), arrival_s=0.1 * index, slo_s=rng.choice([2.5, 3.0]))
        for index in range(60)
    ]
    run = serve(requests, table, 8, TETRIS)
    assert not run.all_on_time
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())
    one_by_one_s = sum(20 * COLUMNS[request.height][3] for request in requests)
    assert max(outcome.end_s for outcome in run.outcomes.values()) < requests[-1].arrival_s + one_by_one_s


@pytest.mark.parametrize("lost", [(0,), (0, 4), (1, 2, 3, 4, 5, 6, 7)])
def test_a_late_request_runs_although_ranks_are_lost_for_good(table, lost):
    failures = [RankFailure(rank, 0.05, float("inf")) for rank in lost]
    run = serve([make_request("r", 1024, slo_s=0.2)], table, 8, TETRIS, failures=failures)
    assert run.outcomes["r"].outcome == "finish"


def test_decodes_go_first_and_where_the_latent_is(table):
    done = waiting(make_request("done", 1024), steps=0, at=(4, 5, 6, 7))
    others = [waiting(make_request(f"r{index}", 256, slo_s=2.2), steps=20) for index in range(8)]
    first = plan(table, [*others, done]).assignments[0]
    assert (first.kind, first.request_ids, first.placement.ranks) == (SegmentKind.DECODE, ("done",), (4,))


def test_a_request_stays_where_it_is(table):
    settled = waiting(make_request("r", 1024, slo_s=4.6), steps=20, at=(4, 5, 6, 7))
    assert denoise_of(plan(table, [settled], settings=without_idle_work()))["r"][0] == (4, 5, 6, 7)


def test_narrow_requests_leave_whole_blocks_to_wide_ones(table):
    small = [waiting(make_request(f"s{index}", 256, slo_s=2.2), steps=20) for index in range(4)]
    wide = waiting(make_request("wide", 1024, slo_s=4.6), steps=20)
    ranks = {key: where for key, (where, _) in denoise_of(plan(table, [*small, wide])).items()}
    assert ranks["wide"] in [(0, 1, 2, 3), (4, 5, 6, 7)]


def scattered(back_s):
    """Four ranks are idle, but no aligned group of four; the rest come back at `back_s`."""
    return dict.fromkeys((3, 5, 6, 7), back_s).items()


def test_a_group_that_soon_is_whole_is_kept_clear_for_a_wide_request(table):
    wide = waiting(make_request("wide", 1024, slo_s=4.6), steps=20)
    narrow = [waiting(make_request(f"n{index}", 256, slo_s=30.0), steps=20) for index in range(4)]
    assert denoise_of(plan(table, [wide, *narrow], busy=scattered(0.1))).keys() <= {f"n{index}" for index in range(4)}
    taken = {
        rank for ranks, _ in denoise_of(plan(table, [wide, *narrow], busy=scattered(0.1))).values() for rank in ranks
    }
    assert taken <= {4}
    at_once = denoise_of(plan(table, [wide], busy=scattered(3.0)))
    assert at_once["wide"][0] == (0, 1)


def test_nobody_waits_for_a_group_for_ever(table):
    """Rank 3 hangs, and is said to come back in a moment again and again."""
    policy, now_s = make_policy(TETRIS, table, 8), 0.0
    wide = waiting(make_request("wide", 1024, slo_s=4.6), steps=20)
    while True:
        ranks = [RankView(rank, now_s if rank in (0, 1, 2, 4) else now_s + 0.1, 0) for rank in range(8)]
        made = policy.plan(SchedulerView((wide,), tuple(ranks), 8, 0.0), now_s)
        if made.assignments:
            break
        now_s += 0.1
    assert 0.0 < now_s < 1.5


def test_segments_are_shorter_where_slack_is(table):
    """Less than half of it; one of many may have next to none, and who is late anyway does not count."""

    def steps_with(slacks_s, segment_seconds=2.0):
        others = [
            waiting(make_request(f"o{i}", 256, slo_s=20 * COLUMNS[256][3] + slack_s), steps=20)
            for i, slack_s in enumerate(slacks_s)
        ]
        request = waiting(make_request("r", 256, slo_s=500.0), steps=40)
        policy = make_policy(without_idle_work(segment_seconds=segment_seconds), table, 8)
        policy.plan(idle_view([*others, request], [0], 8, 0.0), 0.0)
        return denoise_of(policy.plan(idle_view([request], [0], 8, 0.0), 0.0))["r"][1]

    assert steps_with([]) == steps_with([4.5]) == steps_with([-0.5]) == 20
    assert steps_with([2.3]) == steps_with([4.3]) == 10
    assert steps_with([0.6]) == steps_with([0.6, 0.1] * 2 + [0.6] * 36) == 3
    assert steps_with([0.01] + [4.5] * 38) == 20
    assert steps_with([0.6], segment_seconds=0.1) == 1


def test_segments_are_about_as_long_as_configured(table):
    request = waiting(make_request("r", 256, slo_s=500.0), steps=40)
    for segment_seconds, steps in [(0.05, 1), (0.3, 3), (1.0, 10), (100.0, 40)]:
        settings = without_idle_work(segment_seconds=segment_seconds)
        assert denoise_of(plan(table, [request], settings=settings))["r"][1] == steps


def test_nothing_waits_for_nothing(table):
    made = plan(table, [])
    assert made.assignments == () and made.wake_at_s is None


def forecast(table, requests, request_id, *, now_s=0.0, ranks=range(8)):
    return make_policy(TETRIS, table, 8).forecast(idle_view(requests, ranks, 8, now_s), request_id, now_s)


def test_the_forecast_of_a_request_that_can_be_saved_is_in_time(table):
    request = make_request("r", 1024, slo_s=5.0)
    assert 2.4 <= forecast(table, [waiting(request)], "r") <= 5.0


def test_the_forecast_of_a_request_that_cannot_be_saved_is_late(table):
    assert forecast(table, [waiting(make_request("r", 1024, slo_s=1.9))], "r") == pytest.approx(2.4, abs=0.01)
    crowd = [waiting(make_request(f"s{index}", 256, slo_s=2.1), steps=20) for index in range(8)]
    behind = forecast(table, [*crowd, waiting(make_request("r", 1024, slo_s=2.5))], "r")
    assert behind == pytest.approx(4.4, abs=0.1), "two seconds of the crowd, then those of its own"


def test_there_is_no_forecast_for_what_is_not_there_or_without_ranks(table):
    assert forecast(table, [waiting(make_request("r", 1024))], "other") is None
    assert forecast(table, [waiting(make_request("r", 1024))], "r", ranks=()) is None


def test_a_forecast_changes_no_plan(table):
    view = idle_view([waiting(make_request(f"r{i}", 1024, slo_s=3.0)) for i in range(3)], range(8), 8, 0.0)
    asked, fresh = make_policy(TETRIS, table, 8), make_policy(TETRIS, table, 8)
    asked.forecast(view, "r1", 0.0)
    assert asked.plan(view, 0.0) == fresh.plan(view, 0.0)


@pytest.mark.parametrize("slo_scale", [1.0, 1.5])
def test_it_beats_the_paper_on_the_load_of_the_paper(h100, slo_scale):
    def attained(policy: str, seed: int) -> float:
        rng = random.Random(seed)
        now_s, requests = 0.0, []
        for index in range(200):
            now_s += rng.expovariate(36 / 60)
            side = rng.choice(list(SLO_S))
            requests.append(make_request(f"r{index}", side, arrival_s=now_s, slo_s=SLO_S[side] * slo_scale))
        return serve(requests, h100, 8, SchedulerSettings(policy=policy)).slo_attainment

    ours, paper = (fmean(attained(policy, seed) for seed in (7, 8, 9)) for policy in ("tetris", "tetriserve"))
    assert ours > paper + 0.01
