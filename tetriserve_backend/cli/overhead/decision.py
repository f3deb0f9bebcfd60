"""How long a policy takes to decide, on a crowd of requests at random stages."""

import random
import time

from tetriserve_backend.domain import Placement, Request, SegmentKind
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView

_SLO_S = {256: 1.5, 512: 2.0, 1024: 3.0, 2048: 5.0}


def decision_seconds(policy_name: str, table: LatencyTable, num_requests: int, num_decisions: int) -> list[float]:
    """Seconds of each of `num_decisions` calls of `plan` with `num_requests` pending requests and all ranks free.

    Each decision has a fresh crowd and a fresh policy, so that it is a whole round that is planned.
    """
    rng = random.Random(0)
    make_policy(SchedulerSettings(policy=policy_name), table, table.world_size).plan(_crowd(rng, table, 4), 0.0)
    seconds = []
    for _ in range(num_decisions):
        policy = make_policy(SchedulerSettings(policy=policy_name), table, table.world_size)
        policy.plan(_crowd(rng, table, 8), 0.0)
        view = _crowd(rng, table, num_requests)
        start_s = time.perf_counter()
        policy.plan(view, 1000.0)
        seconds.append(time.perf_counter() - start_s)
    return seconds


def _crowd(rng: random.Random, table: LatencyTable, num_requests: int) -> SchedulerView:
    ranks = tuple(RankView(rank, 0.0, 0) for rank in range(table.world_size))
    requests = tuple(_request(rng, table, index) for index in range(num_requests))
    return SchedulerView(requests, ranks, table.world_size, lead_s=0.02)


def _request(rng: random.Random, table: LatencyTable, index: int) -> RequestView:
    height, width = rng.choice([shape for shape in table.resolutions if shape[0] in _SLO_S])
    arrival_s = 1000.0 - rng.random()
    slo_s = _SLO_S[height] * rng.uniform(1.0, 4.0)
    request = Request(f"r{index}", height, width, 20, arrival_s, arrival_s + slo_s)
    encoded = rng.random() < 0.7
    remaining = rng.randint(1, 20) if encoded else 20
    placement = Placement((rng.randrange(table.world_size),)) if encoded else None
    kind = SegmentKind.DENOISE if encoded else SegmentKind.ENCODE
    return RequestView(request, kind, remaining, ready_at_s=0.0, placement=placement, in_flight=0)
