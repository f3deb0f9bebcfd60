"""The view that is kept up to date piece by piece is the one that would be made from nothing."""

import random

from tests.unit.engine.conftest import make_request
from tetriserve_backend.domain import Request
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.ledger import SegmentLedger
from tetriserve_backend.engine.prediction import fastest_latency_s
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.virtual_world import RankFailure, VirtualWorld


def random_requests(seed: int, count: int) -> list[Request]:
    draw, now_s, requests = random.Random(seed), 0.0, []
    for index in range(count):
        now_s += draw.expovariate(3.0)
        requests.append(make_request(f"r{index}", draw.choice((256, 512)), arrival_s=now_s, slo_s=2.0))
    return requests


def check_view(core: EngineCore, event: ev.Event, now_s: float, commands: list[object]) -> None:
    """Compare the view with ledger and states, read directly."""
    view, ledger = core.view(now_s), core._ledger
    assert isinstance(ledger, SegmentLedger)
    assert tuple(rank.rank for rank in view.ranks) == core.usable_ranks
    for rank in view.ranks:
        assert rank.in_flight == ledger.depth(rank.rank)
        assert rank.free_at_s == ledger.free_at_s(rank.rank, now_s) if rank.in_flight else rank.free_at_s <= now_s
    waiting = [
        state
        for state in core._requests.values()
        if not state.rolling_back and state.sent.next_kind(state.request.num_steps) is not None
    ]
    assert [shown.request for shown in view.requests] == [state.request for state in waiting], "in order of arrival"
    for shown, state in zip(view.requests, waiting, strict=True):
        request_id = state.request.request_id
        assert shown.next_kind is state.sent.next_kind(state.request.num_steps)
        assert shown.remaining_steps == state.request.num_steps - state.sent.steps
        assert shown.in_flight == ledger.depth(request_id) and shown.placement == state.placement
        assert shown.runs_alone == state.runs_alone
        if shown.in_flight:
            assert shown.ready_at_s == ledger.free_at_s(request_id, now_s)
        else:
            assert shown.ready_at_s <= now_s


def test_the_view_follows_every_event_lost_ranks_included(table: LatencyTable) -> None:
    for seed in range(6):
        policy = make_policy(SchedulerSettings(policy=("tetriserve", "rssp")[seed % 2]), table, 4)
        failures = [RankFailure(seed % 4, 1.0 + seed, 1.5), RankFailure((seed + 1) % 4, 2.0 + seed, 2.0)]
        core = EngineCore(policy, table, 4, EngineSettings(max_retries=9))
        world = VirtualWorld(core, table, 4, failures=failures, observe=check_view)
        assert all(outcome.outcome == "finish" for outcome in world.run(random_requests(seed, 40)))


def test_a_prediction_counts_the_work_ahead_and_forgets_what_is_done(table: LatencyTable) -> None:
    core = EngineCore(make_policy(SchedulerSettings(policy="fixed-sp1"), table, 4), table, 4, EngineSettings())
    outcomes = list(VirtualWorld(core, table, 4).run([make_request("r0"), make_request("r1", arrival_s=9.0)]))
    alone_s = fastest_latency_s(table, 256, 256, num_steps=5)
    assert [outcome.predicted_finish_s for outcome in outcomes] == [alone_s, 9.0 + alone_s]
    one_ahead = [make_request("r0", 512), make_request("r1")]
    core = EngineCore(make_policy(SchedulerSettings(policy="fixed-sp1"), table, 4), table, 4, EngineSettings())
    finishes = {o.request.request_id: o.predicted_finish_s for o in VirtualWorld(core, table, 4).run(one_ahead)}
    assert finishes["r1"] == alone_s + (0.02 + 5 * 0.4 + 0.05) / 4
    assert core._book.gpu_seconds == 0.0
