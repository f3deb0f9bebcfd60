"""The core answers each event with exactly the right commands."""

import re

import pytest

from tests.unit.engine.conftest import ScriptedPolicy, make_request
from tetriserve_backend.domain import (
    Assignment,
    InvalidRequestError,
    Placement,
    Plan,
    Request,
    RequestCancelledError,
    RequestFailedError,
    SegmentKind,
    UnavailableError,
)
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import (
    EndRequest,
    FinishRequest,
    ReformWorld,
    ReleaseRequest,
    RunSegment,
    SetTimer,
    SourceKind,
)
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.plan_check import PlanError
from tetriserve_backend.scheduler.view import SchedulerView


def encode(request_id: str, rank: int = 0) -> Assignment:
    return Assignment(SegmentKind.ENCODE, (request_id,), Placement((rank,)))


def denoise(request_id: str, ranks: tuple[int, ...], steps: int) -> Assignment:
    return Assignment(SegmentKind.DENOISE, (request_id,), Placement(ranks), steps)


def decode(request_id: str, rank: int) -> Assignment:
    return Assignment(SegmentKind.DECODE, (request_id,), Placement((rank,)))


def run(core: EngineCore, policy: ScriptedPolicy, request: Request, *assignments: Assignment) -> list[RunSegment]:
    policy.plans.append(Plan(assignments))
    commands = core.handle(ev.RequestArrived(request), request.arrival_s)
    assert all(isinstance(command, RunSegment) for command in commands)
    return [command for command in commands if isinstance(command, RunSegment)]


def finish(core: EngineCore, command: RunSegment, now_s: float) -> list[object]:
    return list(core.handle(ev.SegmentFinished(command.segment.segment_id, now_s - 0.1, now_s), now_s))


def test_a_request_goes_through_encode_denoise_decode_and_is_answered(core, policy):
    first, second, third = run(core, policy, make_request(), encode("r0"), denoise("r0", (0, 1), 5), decode("r0", 1))
    assert [c.segment.kind.value for c in (first, second, third)] == ["encode", "denoise", "decode"]
    assert second.segment.parts[0].first_step == 0 and second.segment.num_steps == 5
    assert finish(core, first, 1.0) == [] and finish(core, second, 2.0) == []
    answer, release = finish(core, third, 3.0)
    assert isinstance(answer, FinishRequest) and answer.finish_s == 3.0
    assert [record.kind for record in answer.segments] == ["encode", "denoise", "decode"]
    assert release == ReleaseRequest("r0") and core.is_idle


def test_hand_over_names_where_the_tensors_are(core, policy):
    commands = run(
        core,
        policy,
        make_request(),
        encode("r0", 0),
        denoise("r0", (0, 1), 1),
        denoise("r0", (0, 1), 1),
        denoise("r0", (1,), 1),
        denoise("r0", (2, 3), 1),
        denoise("r0", (0, 1, 2, 3), 1),
        decode("r0", 3),
    )
    overs = [command.hand_over[0] for command in commands]
    kinds = [(over.conditioning.kind, over.latent.kind) for over in overs]
    K = SourceKind
    assert kinds == [
        (K.CREATE, K.CREATE),
        (K.BROADCAST, K.CREATE),
        (K.RESIDENT, K.RESIDENT),
        (K.RESIDENT, K.RESIDENT),
        (K.HOST, K.HOST),
        (K.RESIDENT, K.BROADCAST),  # rank 0 and 1 have the prompt but an old latent
        (K.CREATE, K.RESIDENT),
    ]
    assert overs[1].conditioning.root == 0 and overs[4].latent.root == 2 and overs[5].latent.root == 2


def test_cancel_answers_at_once_and_what_runs_is_forgotten_when_it_ends(core, policy):
    (first,) = run(core, policy, make_request(), encode("r0"))
    end, release = core.handle(ev.RequestCancelled("r0"), 0.5)
    assert isinstance(end, EndRequest) and end.outcome == "cancel" and isinstance(end.error, RequestCancelledError)
    assert release == ReleaseRequest("r0")
    assert core.knows("r0"), "the id stays taken while a segment of it runs"
    assert finish(core, first, 1.0) == []
    assert not core.knows("r0") and core.is_idle


def test_cancelling_an_unknown_request_does_nothing(core):
    assert core.handle(ev.RequestCancelled("nobody"), 0.0) == []


def test_lost_rank_sends_the_request_on_from_its_host_copy(core, policy):
    first, second, third = run(
        core, policy, make_request(), encode("r0"), denoise("r0", (0, 1), 2), denoise("r0", (0, 1), 2)
    )
    finish(core, first, 1.0)
    finish(core, second, 2.0)
    core.handle(ev.WorkerLost(1, "killed"), 2.1)
    policy.plans.append(Plan((denoise("r0", (0,), 1),)))
    (again,) = core.handle(ev.SegmentFailed(third.segment.segment_id, "rank 1 died", retryable=True), 2.1)
    assert again.segment.parts[0].first_step == 2, "the two finished steps are kept"
    assert again.hand_over[0].latent.kind is SourceKind.HOST
    assert [view.rank for view in policy.views[-1].ranks] == [0, 2, 3]


def test_successors_of_a_failed_segment_are_awaited_before_the_request_goes_on(core, policy):
    first, second = run(core, policy, make_request(), encode("r0"), denoise("r0", (0,), 1))
    planned = len(policy.views)
    core.handle(ev.SegmentFailed(first.segment.segment_id, "lost", retryable=True), 0.1)
    assert len(policy.views) == planned, "there is nothing to plan for"
    core.handle(ev.SegmentFailed(second.segment.segment_id, "lost", retryable=True), 0.1)
    (view,) = policy.views[-1].requests
    assert view.next_kind is SegmentKind.ENCODE and view.remaining_steps == 5


def test_a_request_that_loses_its_ranks_again_and_again_fails_alone(core, policy):
    (first,) = run(core, policy, make_request(), encode("r0"))
    policy.plans.append(Plan((encode("r0"),)))
    (again,) = core.handle(ev.SegmentFailed(first.segment.segment_id, "lost", retryable=True), 0.1)
    end, _ = core.handle(ev.SegmentFailed(again.segment.segment_id, "lost", retryable=True), 0.2)
    assert isinstance(end, EndRequest) and isinstance(end.error, RequestFailedError)
    assert "2 times" in str(end.error)


def test_a_lost_rank_takes_back_the_batches_that_count_on_it_as_well(core, policy):
    """r1 itself runs on rank 1; its next steps share a pass with r0, whose work on rank 0 is lost."""
    run(core, policy, make_request("r0"), encode("r0"))
    run(
        core,
        policy,
        make_request("r1"),
        encode("r1", 1),
        Assignment(SegmentKind.DENOISE, ("r0", "r1"), Placement((2,)), 2),
    )
    run(core, policy, make_request("r2"), encode("r2", 3))
    core.handle(ev.WorkerLost(0, "killed"), 0.01)
    core.handle(ev.TimerFired(), 0.01)
    assert [request.request.request_id for request in policy.views[-1].requests] == ["r2"]


def test_an_error_in_the_work_fails_the_request_at_once(core, policy):
    (first,) = run(core, policy, make_request(), encode("r0"))
    end, release = core.handle(ev.SegmentFailed(first.segment.segment_id, "out of memory", retryable=False), 0.1)
    assert end.outcome == "fail" and "out of memory" in str(end.error) and release == ReleaseRequest("r0")


def test_a_request_that_fails_does_not_take_those_along_that_share_later_steps_with_it(core, policy):
    """r1 is to run behind r0 and beside it; nothing is known against r1."""
    (first,) = run(core, policy, make_request("r1"), encode("r1", 1))
    finish(core, first, 0.1)
    (first,) = run(core, policy, make_request("r0"), encode("r0", 0))
    together = Assignment(SegmentKind.DENOISE, ("r0", "r1"), Placement((0,)), 1)
    policy.plans.append(Plan((denoise("r0", (0,), 1), together, denoise("r1", (1,), 2))))
    guilty, shared, after = finish(core, first, 0.2)
    end, _ = fail(core, guilty)
    assert end.request.request_id == "r0" and end.outcome == "fail"
    assert fail(core, shared, "before it", retryable=True) == [] == fail(core, after, "before it", retryable=True)
    (view,) = policy.views[-1].requests
    assert view.request.request_id == "r1" and view.remaining_steps == 5 and not view.runs_alone
    assert core._requests["r1"].retries == 0


def batch_of(core: EngineCore, policy: ScriptedPolicy, *behind: Assignment) -> list[RunSegment]:
    """r0 and r1, encoded, in a batch of two steps, with what is sent behind it."""
    for index, request_id in enumerate(("r0", "r1")):
        (first,) = run(core, policy, make_request(request_id), encode(request_id, index))
        finish(core, first, 0.1)
    policy.plans.append(Plan((Assignment(SegmentKind.DENOISE, ("r0", "r1"), Placement((0,)), 2), *behind)))
    return [command for command in core.handle(ev.TimerFired(), 0.1) if isinstance(command, RunSegment)]


def fail(core: EngineCore, command: RunSegment, reason: str = "NaN", *, retryable: bool = False) -> list[object]:
    return list(core.handle(ev.SegmentFailed(command.segment.segment_id, reason, retryable=retryable), 0.2))


def test_an_error_in_a_batch_fails_only_the_request_that_fails_alone_as_well(core, policy):
    (together,) = batch_of(core, policy)
    policy.plans.append(Plan((denoise("r0", (0,), 5), decode("r0", 0), denoise("r1", (1,), 5))))
    first, second, third = fail(core, together)
    assert [view.runs_alone for view in policy.views[-1].requests] == [True, True]
    assert [command.segment.parts[0].first_step for command in (first, third)] == [0, 0], "from the host copy"
    end, release = fail(core, third)
    assert end.request.request_id == "r1" and end.outcome == "fail" and "NaN" in str(end.error)
    assert release == ReleaseRequest("r1")
    assert finish(core, first, 1.0) == []
    assert isinstance(finish(core, second, 1.1)[0], FinishRequest) and core.is_idle


def test_what_was_sent_behind_a_failed_batch_is_awaited_and_blames_nobody(core, policy):
    """r2 shares a pass with r1 behind the batch, so it is not to be planned on either."""
    (first,) = run(core, policy, make_request("r2"), encode("r2", 2))
    finish(core, first, 0.1)
    behind = (
        Assignment(SegmentKind.DENOISE, ("r1", "r2"), Placement((0,)), 1),
        denoise("r0", (1,), 3),
        denoise("r2", (2,), 4),
    )
    sent = batch_of(core, policy, *behind)
    planned = len(policy.views)
    assert fail(core, sent[0]) == []
    assert [fail(core, command, retryable=True) for command in sent[1:3]] == [[]] * 2
    shown = [[view.request.request_id for view in view.requests] for view in policy.views[planned:]]
    assert shown == [["r1"], ["r0", "r1"]], "who has nothing left in flight"
    assert fail(core, sent[3], retryable=True) == []
    requests = policy.views[-1].requests
    assert {view.request.request_id: view.runs_alone for view in requests} == {"r2": False, "r0": True, "r1": True}
    assert all(view.remaining_steps == 5 for view in requests)
    assert [state.retries for state in core._requests.values()] == [0, 0, 0]


def test_a_failed_batch_is_not_counted_as_the_loss_of_ranks(core, policy):
    (together,) = batch_of(core, policy)
    fail(core, together)
    for _ in range(2):
        policy.plans.append(Plan((denoise("r0", (0,), 5),)))
        (alone,) = core.handle(ev.TimerFired(), 0.2)
        last = fail(core, alone, "lost", retryable=True)
    assert isinstance(last[0], EndRequest) and "2 times" in str(last[0].error)


def test_the_end_of_one_request_is_no_retry_of_the_others_in_its_batch(core, policy):
    """The executor gives up what it has not sent of a batch when one of its requests ends."""
    for _ in range(3):
        (together,) = batch_of(core, policy) if not core.num_requests else run_again(core, policy)
        core.handle(ev.RequestCancelled("r0"), 0.2)
        assert fail(core, together, "request 'r0' has ended", retryable=True) == []
    assert [view.request.request_id for view in policy.views[-1].requests] == ["r1"]
    assert not policy.views[-1].requests[0].runs_alone


def run_again(core: EngineCore, policy: ScriptedPolicy) -> list[RunSegment]:
    """A new r0 in a batch with the r1 that is there."""
    (first,) = run(core, policy, make_request("r0"), encode("r0", 0))
    policy.plans.append(Plan((Assignment(SegmentKind.DENOISE, ("r0", "r1"), Placement((0,)), 2),)))
    return [command for command in finish(core, first, 0.1) if isinstance(command, RunSegment)]


def test_who_is_to_run_alone_may_not_be_planned_in_a_batch(core, policy):
    (together,) = batch_of(core, policy)
    policy.plans.append(Plan((Assignment(SegmentKind.DENOISE, ("r0", "r1"), Placement((0,)), 2),)))
    with pytest.raises(PlanError, match="alone"):
        fail(core, together)


def test_groups_are_formed_anew_once_every_lost_rank_is_loaded_and_nothing_runs(core, policy):
    (running,) = run(core, policy, make_request(), encode("r0", 3))
    core.handle(ev.WorkerLost(0, "killed"), 0.1)
    planned = len(policy.views)
    assert core.handle(ev.WorkerReady(0), 1.0) == [], "rank 3 still runs"
    assert len(policy.views) == planned, "nothing new is started meanwhile"
    assert finish(core, running, 2.0) == [ReformWorld()]
    assert core.usable_ranks == (1, 2, 3)
    core.handle(ev.WorldFormed((0, 1, 2, 3)), 2.1)
    assert core.usable_ranks == (0, 1, 2, 3)


def test_a_rank_lost_while_groups_form_takes_the_world_out_until_the_next_try(core, policy):
    core.handle(ev.WorkerLost(0, "killed"), 0.1)
    assert core.handle(ev.WorkerReady(0), 1.0) == [ReformWorld()]
    core.handle(ev.WorkerLost(2, "killed"), 1.1)
    assert core.usable_ranks == ()
    # Rank 0 is loaded and still waits, so the try begins again as soon as rank 2 is there.
    assert core.handle(ev.WorkerReady(2), 2.0) == [ReformWorld()]


def test_draining_refuses_new_requests_and_aborting_fails_the_rest(core, policy):
    run(core, policy, make_request(), encode("r0"))
    core.handle(ev.DrainRequested(), 0.1)
    (end,) = core.handle(ev.RequestArrived(make_request("r1")), 0.2)
    assert end.outcome == "reject" and isinstance(end.error, UnavailableError)
    end, _ = core.handle(ev.AbortRequested("stopped"), 0.3)
    assert end.request.request_id == "r0" and end.outcome == "fail" and "stopped" in str(end.error)


def test_a_resolution_outside_the_table_is_refused(core):
    (end,) = core.handle(ev.RequestArrived(make_request(side=4096)), 0.0)
    assert end.outcome == "reject" and isinstance(end.error, InvalidRequestError)
    # Nothing of the server's files, nor of what its operator should do.
    expected = r"height, width: got 4096x4096; allowed: latent tokens from 256 to \d+ \(height times width from .*\)"
    assert re.fullmatch(expected, str(end.error))


def test_a_timer_is_set_once_for_one_wake_time(core, policy):
    policy.plans = [Plan(wake_at_s=1.0), Plan(wake_at_s=1.0), Plan(wake_at_s=2.0)]
    assert core.handle(ev.RequestArrived(make_request()), 0.0) == [SetTimer(1.0)]
    assert core.handle(ev.RequestCancelled("nobody"), 0.1) == []
    assert core.handle(ev.TimerFired(), 1.0) == [SetTimer(2.0)]


def test_expected_end_times_follow_the_table_and_what_really_happened(core, policy, table):
    first, second = run(core, policy, make_request(), encode("r0"), denoise("r0", (0, 1), 2))
    view = core.view(0.0)
    encode_s, denoise_s = 0.02 + table.dispatch_s, 2 * 0.08 + table.dispatch_s
    assert view.requests[0].ready_at_s == pytest.approx(encode_s + denoise_s)
    assert [rank.free_at_s for rank in view.ranks] == pytest.approx([encode_s + denoise_s] * 2 + [0.0] * 2)
    finish(core, first, 1.0)
    assert core.view(1.0).ranks[1].free_at_s == pytest.approx(1.0 + denoise_s), "the encode took longer"
    finish(core, second, 1.1)
    assert core.view(1.1).ranks[1].free_at_s == 1.1


@pytest.mark.parametrize(
    "assignments",
    [
        (denoise("r0", (0,), 1),),
        (encode("r0"), encode("r0")),
        (encode("nobody"),),
        (encode("r0"), denoise("r0", (0,), 0)),
        (encode("r0"), denoise("r0", (7,), 1)),
        (encode("r0"), decode("r0", 0)),
    ],
    ids=["denoise before encode", "encode twice", "unknown request", "no steps", "no such rank", "decode too early"],
)
def test_a_plan_that_breaks_the_rules_is_a_bug_and_says_so(core, policy, assignments):
    policy.plans.append(Plan(assignments))
    with pytest.raises(PlanError):
        core.handle(ev.RequestArrived(make_request()), 0.0)


def test_between_the_loss_of_a_rank_and_its_failed_segments_their_requests_are_not_planned(core, policy):
    first, second = run(core, policy, make_request(), encode("r0", 1), denoise("r0", (1,), 2))
    planned = len(policy.views)
    core.handle(ev.WorkerLost(1, "killed"), 0.1)
    assert len(policy.views) == planned, "nothing of it is certain yet"
    core.handle(ev.SegmentFailed(first.segment.segment_id, "lost", retryable=True), 0.1)
    core.handle(ev.SegmentFailed(second.segment.segment_id, "lost", retryable=True), 0.1)
    (view,) = policy.views[-1].requests
    assert view.next_kind is SegmentKind.ENCODE and view.placement is None


def test_a_late_segment_holds_its_rank_and_its_request_back(core, policy):
    run(core, policy, make_request(), encode("r0", 0), denoise("r0", (0, 1), 2))
    assert core.view(0.05).requests[0].ready_at_s < 0.3
    late_s = 10.0
    view = core.view(late_s)
    assert view.available_ranks(late_s) == (2, 3), "the encode on rank 0 is late, the steps behind it wait"
    assert not view.is_ready(view.requests[0], late_s)
    core.handle(ev.SegmentFinished(0, 0.0, late_s), late_s)
    view = core.view(late_s)
    assert view.is_ready(view.requests[0], late_s + 0.2) and 0 in view.available_ranks(late_s + 0.2)


class ForecastingPolicy(ScriptedPolicy):
    """Expects every request to be done at `finish_s`."""

    def __init__(self, finish_s: float | None) -> None:
        super().__init__()
        self.finish_s = finish_s

    def forecast(self, view: SchedulerView, request_id: str, now_s: float) -> float | None:
        assert request_id in [request.request.request_id for request in view.requests]
        return self.finish_s


@pytest.mark.parametrize("finish_s", [3.0, 7.5])
def test_an_answer_tells_what_the_policy_expected_at_arrival(table, finish_s):
    policy = ForecastingPolicy(finish_s)
    core = EngineCore(policy, table, 4, EngineSettings())
    first, second, third = run(core, policy, make_request(), encode("r0"), denoise("r0", (0,), 5), decode("r0", 0))
    answer = [finish(core, command, 1.0) for command in (first, second, third)][-1][0]
    assert answer.predicted_finish_s == finish_s


def test_without_a_forecast_first_come_first_served_is_expected(table):
    policy = ForecastingPolicy(None)
    core = EngineCore(policy, table, 4, EngineSettings(admission="reject"))
    assert core.handle(ev.RequestArrived(make_request(slo_s=0.45)), 0.0) == [], "0.42 s alone"
    (end,) = core.handle(ev.RequestArrived(make_request("r1", slo_s=0.45)), 0.0)
    assert end.outcome == "reject"


def test_a_request_that_should_be_late_is_refused_with_the_prediction_if_configured(table):
    policy = ForecastingPolicy(17.25)
    core = EngineCore(policy, table, 4, EngineSettings(admission="reject"))
    (end,) = core.handle(ev.RequestArrived(make_request(arrival_s=10.0, slo_s=5.0)), 10.0)
    assert end.outcome == "reject" and isinstance(end.error, UnavailableError)
    assert "7.250 s" in str(end.error) and "5.000 s" in str(end.error)
    assert core.is_idle and not core.knows("r0") and not policy.views, "nothing is left of it"
    policy.finish_s = 15.0
    assert core.handle(ev.RequestArrived(make_request(arrival_s=10.0, slo_s=5.0)), 10.0) == [], "just in time"


def test_by_default_a_request_that_should_be_late_is_served(table):
    policy = ForecastingPolicy(1000.0)
    core = EngineCore(policy, table, 4, EngineSettings())
    assert len(run(core, policy, make_request(), encode("r0"))) == 1
