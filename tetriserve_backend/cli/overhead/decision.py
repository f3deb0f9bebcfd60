"""How long a policy takes to decide, on a crowd of requests at random stages."""

import random
import time

from tetriserve_backend.domain import Placement, Plan, Request, SegmentKind
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView

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
    """Seconds of each call of `plan` in a server with that many pending requests and ranks.

    All ranks are busy at first; then, one event after another, the ranks of some request become free and it is
    ready for its next segment, as when a segment has ended.
    """
    rng = random.Random(0)
    policy = make_policy(SchedulerSettings(policy=policy_name), table, world_size)
    requests = list(_crowd(rng, table, num_requests, world_size).requests)
    ranks = [RankView(rank, 1001.0, 1) for rank in range(world_size)]
    now_s, plan = 1000.0, Plan(wake_at_s=1000.0)
    while plan.wake_at_s is not None and plan.wake_at_s < 1000.5:
        now_s = max(now_s, plan.wake_at_s)
        plan = policy.plan(SchedulerView(tuple(requests), tuple(ranks), world_size, lead_s=0.02), now_s)
    seconds = []
    for number in range(num_events):
        now_s += 1e-3
        rank, index = rng.randrange(world_size), rng.randrange(num_requests)
        ranks[rank] = RankView(rank, now_s, 0)
        requests[index] = _request(rng, table, num_requests + number, now_s, world_size)
        view = SchedulerView(tuple(requests), tuple(ranks), world_size, lead_s=0.02)
        start_s = time.perf_counter()
        policy.plan(view, now_s)
        seconds.append(time.perf_counter() - start_s)
        ranks[rank] = RankView(rank, now_s + 1.0, 1)
    return seconds


def _crowd(rng: random.Random, table: LatencyTable, num_requests: int, world_size: int) -> SchedulerView:
    ranks = tuple(RankView(rank, 0.0, 0) for rank in range(world_size))
    requests = tuple(_request(rng, table, index, 1000.0, world_size) for index in range(num_requests))
    return SchedulerView(requests, ranks, world_size, lead_s=0.02)


def _request(rng: random.Random, table: LatencyTable, index: int, now_s: float, world_size: int) -> RequestView:
    height, width = rng.choice([shape for shape in table.resolutions if shape[0] in _SLO_S])
    arrival_s = now_s - rng.random()
    slo_s = _SLO_S[height] * rng.uniform(1.0, 4.0)
    request = Request(f"r{index}", height, width, 20, arrival_s, arrival_s + slo_s)
    encoded = rng.random() < 0.7
    remaining = rng.randint(1, 20) if encoded else 20
    placement = Placement((rng.randrange(world_size),)) if encoded else None
    kind = SegmentKind.DENOISE if encoded else SegmentKind.ENCODE
    return RequestView(request, kind, remaining, ready_at_s=0.0, placement=placement, in_flight=0)
