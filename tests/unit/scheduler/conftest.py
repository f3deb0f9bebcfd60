"""Tables, views and runs in virtual time, with the invariants of every plan checked as it runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tetriserve_backend.domain import Assignment, Placement, Plan, Request, Segment, SegmentKind
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.groups import aligned_groups
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView
from tetriserve_backend.simulator.virtual_world import Outcome, RankFailure, VirtualWorld

SLO_S = {256: 1.5, 512: 2.0, 1024: 3.0, 2048: 5.0}
POLICIES = ("tetriserve", "tetris", "rssp", "fcfs-optimal-shape", "fixed-sp1", "fixed-sp2", "fixed-sp4", "fixed-sp8")


def make_table(
    step_s: dict[int, Sequence[float]],
    world_size: int,
    *,
    stage_s: float = 0.01,
    pairs: dict[tuple[int, int], float] | None = None,
) -> LatencyTable:
    """A table of square images: side → seconds at degrees 1, 2, 4, …; encode and decode take `stage_s`.

    `pairs`: (side, degree) → seconds of a batch of two.
    """
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": "test",
            "device": "test",
            "world_size": world_size,
            "dtype": "float32",
            "source": "analytic",
            "step": [
                {"height": side, "width": side, "batch": 1, "sp": 2**exponent, "seconds": seconds}
                for side, column in step_s.items()
                for exponent, seconds in enumerate(column)
            ]
            + [
                {"height": side, "width": side, "batch": 2, "sp": degree, "seconds": seconds}
                for (side, degree), seconds in (pairs or {}).items()
            ],
            "encode": [{"batch": 1, "seconds": stage_s}],
            "decode": [{"height": side, "width": side, "seconds": stage_s} for side in step_s],
            "dispatch_seconds": 0.0,
        },
        origin="test",
    )


def make_request(
    request_id: str, side: int, *, arrival_s: float = 0.0, slo_s: float = 100.0, num_steps: int = 20
) -> Request:
    return Request(request_id, side, side, num_steps, arrival_s, arrival_s + slo_s)


def waiting(request: Request, *, steps: int | None = None, at: tuple[int, ...] | None = None) -> RequestView:
    """A request with nothing in flight: new, or encoded with `steps` steps left and last seen on ranks `at`."""
    kind = SegmentKind.ENCODE if steps is None else SegmentKind.DENOISE if steps else SegmentKind.DECODE
    remaining = request.num_steps if steps is None else steps
    return RequestView(request, kind, remaining, request.arrival_s, Placement(at) if at else None, 0)


def running(request: Request, steps_left: int, at: tuple[int, ...], until_s: float) -> RequestView:
    """A request that does steps on ranks `at` until `until_s`, with `steps_left` after these."""
    return RequestView(request, SegmentKind.DENOISE, steps_left, until_s, Placement(at), 1)


def idle_view(requests: Sequence[RequestView], ranks: Sequence[int], world_size: int, now_s: float) -> SchedulerView:
    return SchedulerView(tuple(requests), tuple(RankView(rank, now_s, 0) for rank in ranks), world_size, 0.0)


def denoise_of(plan: Plan) -> dict[str, tuple[tuple[int, ...], int]]:
    """Ranks and steps of each request's denoise segment."""
    return {
        entry.request_ids[0]: (entry.placement.ranks, entry.num_steps)
        for entry in plan.assignments
        if entry.kind is SegmentKind.DENOISE
    }


class CheckedPolicy:
    """A policy whose every plan is checked against the rules of `Plan` before it reaches the engine."""

    def __init__(self, policy: Policy) -> None:
        self.inner = policy
        self.name = policy.name

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        plan = self.inner.plan(view, now_s)
        check_plan(plan, view, now_s)
        return plan


def check_plan(plan: Plan, view: SchedulerView, now_s: float) -> None:
    """Free ranks only and each for one batch, ready requests only, aligned groups, stages and steps in order."""
    available = set(view.available_ranks(now_s))
    requests = {request.request.request_id: request for request in view.requests}
    chains: dict[str, list[Assignment]] = defaultdict(list)
    crew_of: dict[str, set[str]] = defaultdict(set)
    for entry in plan.assignments:
        shapes = {
            (requests[i].request.model, requests[i].request.height, requests[i].request.width)
            for i in entry.request_ids
        }
        assert len(shapes) == 1, "one batch, one model and one resolution"
        assert len(set(entry.request_ids)) == len(entry.request_ids)
        assert len(entry.request_ids) == 1 or entry.kind is SegmentKind.DENOISE, "only steps are done in batches"
        assert len(entry.request_ids) == 1 or not any(requests[i].runs_alone for i in entry.request_ids)
        assert entry.num_steps <= min(requests[request_id].remaining_steps for request_id in entry.request_ids)
        assert entry.placement.ranks in aligned_groups(view.world_size)[entry.placement.sp_degree]
        for request_id in entry.request_ids:
            chains[request_id].append(entry)
            crew_of[request_id] |= set(entry.request_ids)
    user_of: dict[int, str] = {}
    for request_id, entries in chains.items():
        request = requests[request_id]
        assert view.is_ready(request, now_s)
        ranks = {rank for entry in entries for rank in entry.placement.ranks}
        assert ranks <= available, "only free ranks"
        assert all(user_of.setdefault(rank, request_id) in crew_of[request_id] for rank in ranks), "one batch a rank"
        stages = list(SegmentKind)
        kinds = [stages.index(entry.kind) for entry in entries]
        first = stages.index(request.next_kind)
        assert kinds == list(range(first, first + len(kinds))), "stages in order, none left out"
        steps = sum(entry.num_steps for entry in entries)
        assert all((entry.num_steps >= 1) == (entry.kind is SegmentKind.DENOISE) for entry in entries)
        if entries[-1].kind is SegmentKind.DECODE:
            assert steps == request.remaining_steps
    assert plan.wake_at_s is None or plan.wake_at_s > now_s


@dataclass
class Run:
    """What a run in virtual time did."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    segments: list[tuple[float, Segment]] = field(default_factory=list)

    @property
    def all_on_time(self) -> bool:
        return all(outcome.on_time for outcome in self.outcomes.values())

    @property
    def slo_attainment(self) -> float:
        return sum(outcome.on_time for outcome in self.outcomes.values()) / len(self.outcomes)

    def degrees(self, request_id: str) -> list[int]:
        return [
            segment.placement.sp_degree
            for _, segment in self.segments
            if segment.kind is SegmentKind.DENOISE and request_id in {part.request_id for part in segment.parts}
        ]


def serve(
    requests: Sequence[Request],
    table: LatencyTable | LatencyTables,
    world_size: int,
    settings: SchedulerSettings,
    *,
    lead_s: float = 0.02,
    failures: Sequence[RankFailure] = (),
    stretch=lambda segment, start_s: 1.0,
) -> Run:
    """Serve requests (in order of arrival) in virtual time on a fresh engine, with checked plans."""
    policy = CheckedPolicy(make_policy(settings, table, world_size))
    core = EngineCore(policy, table, world_size, EngineSettings(lead_s=lead_s))
    run = Run()

    def observe(_core, _event, now_s, commands):
        run.segments += [(now_s, command.segment) for command in commands if isinstance(command, RunSegment)]

    world = VirtualWorld(core, table, world_size, failures=failures, stretch=stretch, observe=observe)
    for outcome in world.run(requests):
        assert outcome.request.request_id not in run.outcomes, "every request ends once"
        run.outcomes[outcome.request.request_id] = outcome
    assert len(run.outcomes) == len(requests), "every request ends"
    assert core.is_idle
    return run
