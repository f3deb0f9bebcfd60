"""fixed-sp<k>, rssp and fcfs-optimal-shape: each request owns a group until it is done."""

import pytest

from tests.unit.scheduler.conftest import denoise_of, idle_view, make_request, serve, waiting
from tetriserve_backend.domain import Assignment, Placement, SegmentKind
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView


def policy_of(name, table, world_size=8, **settings):
    return make_policy(SchedulerSettings(policy=name, **settings), table, world_size)


def test_fixed_degree_encodes_denoises_and_decodes_on_one_group(h100):
    run = serve([make_request("a", 512, num_steps=12)], h100, 8, SchedulerSettings(policy="fixed-sp4"))
    kinds = [(segment.kind, segment.placement.ranks, segment.num_steps) for _, segment in run.segments]
    group = (0, 1, 2, 3)
    assert kinds == [
        (SegmentKind.ENCODE, (0,), 0),
        (SegmentKind.DENOISE, group, 5),
        (SegmentKind.DENOISE, group, 5),
        (SegmentKind.DENOISE, group, 2),
        (SegmentKind.DECODE, (0,), 0),
    ]


def test_next_piece_is_sent_ahead_of_the_end_of_the_last(h100):
    run = serve([make_request("a", 512, num_steps=10)], h100, 8, SchedulerSettings(policy="fixed-sp1"), lead_s=0.02)
    first_end_s = h100.encode_s() + 5 * h100.step_s(512, 512, 1) + 2 * h100.dispatch_s
    sent_s = [at_s for at_s, segment in run.segments if segment.kind is SegmentKind.DENOISE]
    assert sent_s == [0.0, pytest.approx(first_end_s - 0.02)]


def test_a_shape_that_cannot_run_at_k_uses_the_largest_degree_below_in_the_group(h100):
    view = idle_view([waiting(make_request("odd", 2032), steps=20, at=(0,))], range(8), 8, 0.0)
    assert denoise_of(policy_of("fixed-sp4", h100).plan(view, 0.0)) == {"odd": ((0,), 5)}
    later = idle_view([waiting(make_request(name, 2032)) for name in "ab"], range(8), 8, 0.0)
    plan = policy_of("fixed-sp4", h100).plan(later, 0.0)
    assert denoise_of(plan) == {"a": ((0,), 5), "b": ((4,), 5)}, "the rest of each group stays idle"


def test_fixed_degree_serves_first_come_first_served(h100):
    requests = [waiting(make_request(name, 512, arrival_s=at_s)) for at_s, name in enumerate("abc")]
    plan = policy_of("fixed-sp4", h100).plan(idle_view(requests, range(8), 8, 5.0), 5.0)
    assert denoise_of(plan) == {"a": ((0, 1, 2, 3), 5), "b": ((4, 5, 6, 7), 5)}


def test_group_is_kept_between_pieces_although_its_ranks_are_idle(h100):
    policy = policy_of("fixed-sp8", h100)
    first, second = (make_request(name, 512) for name in "ab")
    policy.plan(idle_view([waiting(first), waiting(second)], range(8), 8, 0.0), 0.0)
    plan = policy.plan(
        idle_view([waiting(first, steps=15, at=tuple(range(8))), waiting(second)], range(8), 8, 1.0), 1.0
    )
    assert denoise_of(plan) == {"a": (tuple(range(8)), 5)}


def test_lost_rank_moves_its_request_to_a_whole_group(h100):
    policy = policy_of("fixed-sp4", h100)
    request = make_request("a", 1024)
    assert denoise_of(policy.plan(idle_view([waiting(request)], range(8), 8, 0.0), 0.0)) == {"a": ((0, 1, 2, 3), 5)}
    plan = policy.plan(idle_view([waiting(request, steps=15)], [0, 2, 3, 4, 5, 6, 7], 8, 1.0), 1.0)
    assert denoise_of(plan) == {"a": ((4, 5, 6, 7), 5)}


def test_a_world_without_a_whole_group_serves_at_the_next_smaller_size(h100):
    plan = policy_of("fixed-sp8", h100).plan(
        idle_view([waiting(make_request("a", 2048))], [0, 1, 2, 4, 6, 7], 8, 0.0), 0.0
    )
    assert denoise_of(plan) == {"a": ((0, 1), 5)}


def test_lost_decode_is_done_again(h100):
    view = idle_view([waiting(make_request("a", 512), steps=0)], range(8), 8, 0.0)
    plan = policy_of("fixed-sp2", h100).plan(view, 0.0)
    assert plan.assignments == (Assignment(SegmentKind.DECODE, ("a",), Placement((0,))),)


def test_optimal_shape_takes_each_fastest_degree(h100):
    requests = [waiting(make_request(name, side)) for name, side in (("s", 256), ("m", 512), ("l", 1024))]
    plan = policy_of("fcfs-optimal-shape", h100).plan(idle_view(requests, range(8), 8, 0.0), 0.0)
    assert denoise_of(plan) == {"s": ((0,), 5), "m": ((2, 3), 5), "l": ((4, 5, 6, 7), 5)}


def busy(view: SchedulerView, ranks, until_s: float) -> SchedulerView:
    changed = tuple(RankView(r.rank, until_s, 1) if r.rank in ranks else r for r in view.ranks)
    return SchedulerView(view.requests, changed, view.world_size, view.lead_s)


def test_optimal_shape_does_not_overtake(h100):
    requests = [waiting(make_request("wide", 2048)), waiting(make_request("small", 256))]
    view = busy(idle_view(requests, range(8), 8, 0.0), {7}, 3.0)
    assert denoise_of(policy_of("fcfs-optimal-shape", h100).plan(view, 0.0)) == {}


def test_rssp_backfills_what_ends_before_the_waiting_request_can_start(h100):
    requests = [waiting(make_request("wide", 2048)), waiting(make_request("small", 256))]
    view = busy(idle_view(requests, range(8), 8, 0.0), {7}, 3.0)
    assert set(denoise_of(policy_of("rssp", h100).plan(view, 0.0))) == {"small"}


def test_rssp_backfill_holds_back_only_for_a_request_that_is_very_late(h100):
    requests = [waiting(make_request("wide", 2048, slo_s=5.0)), waiting(make_request("small", 256))]
    for now_s, started in ((14.9, {"small"}), (15.1, set())):
        view = busy(idle_view(requests, range(8), 8, now_s), {7}, now_s + 0.5)
        assert set(denoise_of(policy_of("rssp", h100, late_limit_s=10.0).plan(view, now_s))) == started


def test_rssp_waits_for_the_owner_of_a_group_not_only_for_its_current_piece(h100):
    policy = policy_of("rssp", h100, rssp_degrees={"1024x1024": 8, "2048x2048": 8})
    owner, wide, small = make_request("owner", 1024), make_request("wide", 2048), make_request("small", 256)
    policy.plan(idle_view([waiting(owner)], range(8), 8, 0.0), 0.0)
    running = RequestView(owner, SegmentKind.DENOISE, 15, 0.4, Placement(tuple(range(8))), 2)
    view = busy(idle_view([running, waiting(wide), waiting(small)], range(8), 8, 0.1), set(range(8)), 0.4)
    assert policy.plan(view, 0.1).assignments == ()
    assert policy.plan(view, 0.1).wake_at_s == pytest.approx(0.4)


def test_wide_request_is_served_under_a_constant_stream_of_small_ones(h100):
    small = [make_request(f"s{i}", 256, arrival_s=0.15 * i) for i in range(200)]
    requests = sorted([*small, make_request("wide", 2048, arrival_s=5.0, slo_s=5.0)], key=lambda r: r.arrival_s)
    run = serve(requests, h100, 8, SchedulerSettings(policy="rssp", late_limit_s=4.0))
    assert run.outcomes["wide"].end_s < 5.0 + 9.0 + 1.1 + 4.0, "its patience, the small ones that run, its own time"


@pytest.mark.parametrize(("settings", "expected"), [({}, (0, 1)), ({"rssp_degrees": {"1024x1024": 4}}, (0, 1, 2, 3))])
def test_rssp_degrees_can_be_set(h100, settings, expected):
    view = idle_view([waiting(make_request("a", 1024))], range(8), 8, 0.0)
    assert denoise_of(policy_of("rssp", h100, **settings).plan(view, 0.0)) == {"a": (expected, 5)}
