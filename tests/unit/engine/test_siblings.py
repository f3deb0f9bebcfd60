"""The images of one request are encoded together, whatever the policy plans, and go their own ways then."""

from dataclasses import replace

import pytest

from tests.unit.engine.conftest import make_request
from tests.unit.engine.test_core import denoise, encode, fail, finish
from tetriserve_backend.domain import Plan, SegmentKind
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import EndRequest, RunSegment, SourceKind
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.virtual_world import VirtualWorld

THREE = tuple(replace(make_request(f"r{index}"), prompt_group="r") for index in range(3))
OTHER = replace(make_request("other"), prompt_group="other")


def arrive(core: EngineCore) -> list[RunSegment]:
    core.handle(ev.RequestArrived(OTHER), 0.0)
    commands = core.handle(ev.RequestArrived(THREE[0], THREE[1:]), 0.0)
    return [command for command in commands if isinstance(command, RunSegment)]


def served(command: RunSegment) -> list[str]:
    return [part.request_id for part in command.segment.parts]


def test_one_encode_serves_all_and_what_was_planned_for_the_others_is_left_out(core, policy):
    policy.plans = [
        Plan(),
        Plan((encode("r1", 1), encode("other", 3), encode("r0", 0), denoise("r0", (0,), 5), denoise("r1", (1,), 5))),
    ]
    together, alone, first, second = arrive(core)
    assert served(together) == ["r1", "r0", "r2"] and together.segment.placement.ranks == (1,)
    assert together.requests[1] == THREE[0] and len(together.hand_over) == 3
    assert served(alone) == ["other"]
    conditioning = [command.hand_over[0].conditioning.kind for command in (first, second)]
    assert conditioning == [SourceKind.HOST, SourceKind.RESIDENT]
    finish(core, together, 1.0)
    assert {view.next_kind for view in policy.views[-1].requests if view.request in THREE} == {
        SegmentKind.DENOISE, SegmentKind.DECODE,
    }  # fmt: skip


def test_texts_of_another_length_are_encoded_together_but_share_no_steps(core, policy):
    first, second = (replace(request, max_sequence_length=8) for request in THREE[:2])
    policy.plans = [Plan((encode("r0"),))]
    (together,) = core.handle(ev.RequestArrived(first, (second,)), 0.0)
    assert served(together) == ["r0", "r1"]
    finish(core, together, 1.0)
    assert [view.runs_alone for view in policy.views[-1].requests] == [True, True]


def test_an_image_that_lost_its_encode_has_it_again_with_those_that_lack_theirs(core, policy):
    policy.plans = [Plan(), Plan((encode("r0"),))]
    (together,) = arrive(core)
    core.handle(ev.RequestCancelled("r2"), 0.1)
    policy.plans = [Plan((encode("r1", 2),))]
    (again,) = fail(core, together, "rank 0 was lost", retryable=True)
    assert served(again) == ["r1", "r0"]


def test_an_encode_that_raises_is_tried_alone_and_fails_whose_it_is(core, policy):
    policy.plans = [Plan(), Plan((encode("r0"),))]
    (together,) = arrive(core)
    policy.plans = [Plan((encode("r0"), encode("r1")))]
    first, second = fail(core, together)
    assert served(first) == ["r0"] and served(second) == ["r1"]
    end, _ = fail(core, first)
    assert isinstance(end, EndRequest) and end.request is THREE[0]


def test_an_id_that_is_refused_leaves_its_siblings_to_the_client(core, policy, table):
    """Each is admitted by itself; the client's side stops the others."""
    tight = EngineCore(policy, table, 4, EngineSettings(admission="reject"))
    late = replace(THREE[1], deadline_s=0.01)
    policy.plans = [Plan((encode("r0"),))]
    end, together = tight.handle(ev.RequestArrived(THREE[0], (late, THREE[2])), 0.0)
    assert end.request is late and end.outcome == "reject"
    assert served(together) == ["r0", "r2"]


@pytest.mark.parametrize("name", ["tetris", "tetriserve", "rssp", "fcfs-optimal-shape", "fixed-sp2"])
def test_every_policy_serves_them_with_one_encode(name, table):
    core = EngineCore(make_policy(SchedulerSettings(policy=name), table, 4), table, 4, EngineSettings())
    encodes: list[list[str]] = []

    def look(_core, _event, _now_s, commands):
        runs = [command for command in commands if isinstance(command, RunSegment)]
        encodes.extend(served(run) for run in runs if run.segment.kind is SegmentKind.ENCODE)

    world = VirtualWorld(core, table, 4, observe=look)
    world._push(0.0, ev.RequestArrived(THREE[0], THREE[1:]))
    assert [outcome.outcome for outcome in world.run([])] == ["finish"] * 3
    assert [sorted(ids) for ids in encodes] == [["r0", "r1", "r2"]]
