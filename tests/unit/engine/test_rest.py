"""Somebody else gets the ranks only when all of them are there, and gives them back as they are by then."""

from tests.unit.engine.conftest import ScriptedPolicy, make_request
from tests.unit.engine.test_core import encode, finish, run
from tetriserve_backend.domain import Plan
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import ReformWorld
from tetriserve_backend.engine.core import EngineCore

EVERYBODY = (0, 1, 2, 3)


def test_rest_waits_for_a_lost_rank_while_the_others_serve(core: EngineCore, policy: ScriptedPolicy) -> None:
    core.handle(ev.WorkerLost(3, "killed"), 0.1)
    assert core.handle(ev.RestBegun(), 0.2) == []
    assert not core.is_quiet
    (running,) = run(core, policy, make_request(arrival_s=0.3), encode("r0"))
    assert core.handle(ev.WorkerReady(3), 1.0) == []
    assert finish(core, running, 2.0) == [ReformWorld()]
    assert not core.is_quiet
    planned = len(policy.views)
    core.handle(ev.WorldFormed(EVERYBODY), 2.1)
    assert core.is_quiet
    core.handle(ev.RequestArrived(make_request("r1", arrival_s=2.2)), 2.2)
    assert len(policy.views) == planned
    core.handle(ev.RestEnded(), 3.0)
    assert len(policy.views) == planned + 1


def test_rank_lost_while_the_engine_comes_to_rest_is_waited_for(core: EngineCore, policy: ScriptedPolicy) -> None:
    (running,) = run(core, policy, make_request(), encode("r0"))
    core.handle(ev.RestBegun(), 0.1)
    core.handle(ev.WorkerLost(3, "killed"), 0.2)
    finish(core, running, 1.0)
    assert not core.is_quiet
    assert core.handle(ev.WorkerReady(3), 2.0) == [ReformWorld()]
    core.handle(ev.WorldFormed(EVERYBODY), 2.1)
    assert core.is_quiet


def test_ranks_come_back_from_rest_as_they_are_by_then(core: EngineCore, policy: ScriptedPolicy) -> None:
    core.handle(ev.RestBegun(), 0.1)
    core.handle(ev.RequestArrived(make_request()), 0.2)
    policy.plans.append(Plan((encode("r0"),)))
    replaced = (ev.WorkerLost(0, "killed"), ev.WorkerReady(0))
    (sent,) = core.handle(ev.RestEnded((*replaced, ev.WorldFormed(EVERYBODY))), 1.0)
    assert sent != ReformWorld(), "whoever had the ranks has had their groups formed"
    finish(core, sent, 2.0)
    core.handle(ev.RestBegun(), 3.0)
    assert core.is_quiet
    assert core.handle(ev.RestEnded(replaced), 4.0) == [ReformWorld()]
