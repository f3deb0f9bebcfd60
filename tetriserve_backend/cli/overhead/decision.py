"""How long a policy takes to decide: on a crowd at random stages, and event by event in a simulated server."""

import random
import time
from collections.abc import Iterator
from itertools import count

from tetriserve_backend.domain import Placement, Plan, Request, SegmentKind
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTable, as_tables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView
from tetriserve_backend.simulator.timed_policy import TimedPolicy
from tetriserve_backend.simulator.virtual_world import VirtualWorld

_NUM_STEPS = 20
_SLO_S = {256: 1.5, 512: 2.0, 1024: 3.0, 2048: 5.0}


def decision_seconds(
    policy_name: str, table: LatencyTable, num_requests: int, num_decisions: int, *, world_size: int | None = None
) -> list[float]:
    """Seconds of each of `num_decisions` calls of `plan` with `num_requests` pending requests and all ranks free.

    Each decision has a fresh crowd and a fresh policy, so that it is a whole round that is planned. The world is
    that of the table if `world_size` does not say otherwise.
    """
    ranks = world_size or table.world_size
    rng = random.Random(0)
    make_policy(SchedulerSettings(policy=policy_name), table, ranks).plan(_crowd(rng, table, 4, ranks), 0.0)
    seconds = []
    for _ in range(num_decisions):
        policy = make_policy(SchedulerSettings(policy=policy_name), table, ranks)
        policy.plan(_crowd(rng, table, 8, ranks), 0.0)
        view = _crowd(rng, table, num_requests, ranks)
        start_s = time.perf_counter()
        policy.plan(view, 1000.0)
        seconds.append(time.perf_counter() - start_s)
    return seconds


def event_seconds(
    policy_name: str, table: LatencyTable, num_requests: int, num_events: int, *, world_size: int
) -> list[float]:
    """Seconds of each call of `plan` in a simulated server after its crowd has come: one call per event.

    `num_requests` come at once, and from then on as many as the ranks can serve, so that about so many are pending.
    """
    policy = _Stopwatch(make_policy(SchedulerSettings(policy=policy_name), table, world_size), num_requests)
    world = VirtualWorld(EngineCore(policy, as_tables(table), world_size, EngineSettings()), table, world_size)
    for _ in world.run(_stream(random.Random(0), table, num_requests, world_size)):
        if len(policy.seconds) >= num_events:
            break
    return policy.seconds[:num_events]


class _Stopwatch(TimedPolicy):
    """Keeps the seconds of each plan from the first one on that has `crowd` requests to plan."""

    def __init__(self, policy: Policy, crowd: int) -> None:
        super().__init__(policy)
        self._crowd, self.seconds = crowd, list[float]()

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """The policy's plan."""
        plan = super().plan(view, now_s)
        if self.seconds or len(view.requests) >= self._crowd:
            self.seconds.append(self.last_ms / 1e3)
        return plan


def _stream(rng: random.Random, table: LatencyTable, num_requests: int, world_size: int) -> Iterator[Request]:
    shapes = _shapes(table)
    mean_gpu_s = sum(_NUM_STEPS * table.step_s(*shape, 1) for shape in shapes) / len(shapes)
    arrival_s = 0.0
    for number in count():
        height, width = rng.choice(shapes)
        slo_s = _SLO_S[height] * rng.uniform(1.0, 4.0)
        yield Request(f"r{number}", height, width, _NUM_STEPS, arrival_s, arrival_s + slo_s)
        if number >= num_requests:
            arrival_s += rng.expovariate(world_size / mean_gpu_s)


def _crowd(rng: random.Random, table: LatencyTable, num_requests: int, world_size: int) -> SchedulerView:
    ranks = tuple(RankView(rank, 0.0, 0) for rank in range(world_size))
    requests = tuple(_request(rng, table, index, 1000.0, world_size) for index in range(num_requests))
    return SchedulerView(requests, ranks, world_size, lead_s=0.02)


def _request(rng: random.Random, table: LatencyTable, index: int, now_s: float, world_size: int) -> RequestView:
    height, width = rng.choice(_shapes(table))
    arrival_s = now_s - rng.random()
    slo_s = _SLO_S[height] * rng.uniform(1.0, 4.0)
    request = Request(f"r{index}", height, width, _NUM_STEPS, arrival_s, arrival_s + slo_s)
    encoded = rng.random() < 0.7
    remaining = rng.randint(1, _NUM_STEPS) if encoded else _NUM_STEPS
    placement = Placement((rng.randrange(world_size),)) if encoded else None
    kind = SegmentKind.DENOISE if encoded else SegmentKind.ENCODE
    return RequestView(request, kind, remaining, ready_at_s=0.0, placement=placement, in_flight=0)


def _shapes(table: LatencyTable) -> list[tuple[int, int]]:
    return [shape for shape in table.resolutions if shape[0] in _SLO_S]
