"""A world of many ranks as pods, of which only those are planned anew where something changed."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from tetriserve_backend.domain import Plan
from tetriserve_backend.scheduler.tetris.gathering import Gatherer
from tetriserve_backend.scheduler.tetris.planner import Planner
from tetriserve_backend.scheduler.tetris.pod import Pod
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView

_NEW_PER_PLAN, _RANKS_PER_PLAN = 512, 64
"""What one call deals with, so that no decision takes long; the rest has its turn in a call at once afterwards."""
_TRIALS_PER_PLAN = 256
"""How often new requests are tried in a pod, all together; each in the least loaded pods."""
_MOVES_PER_PLAN, _MOVE_TRIALS = 4, 4
_AT_ONCE_S = 1e-4


@dataclass(slots=True)
class Member:
    """A pod and what it knows of.

    Attributes:
        load: GPU-seconds per rank that its requests still need at least.
        wake_at_s: when its next plan is due; -inf where something changed.
        planned_s: when its last plan was made.
    """

    ranks: range
    pod: Pod
    planner: Planner
    requests: dict[str, RequestView] = field(default_factory=dict)
    rank_views: dict[int, RankView] = field(default_factory=dict)
    load: float = 0.0
    wake_at_s: float = -math.inf
    planned_s: float = -math.inf


class Fleet:
    """Gives each request to a pod and plans the pods one by one.

    A new request goes to the pod that can serve it in time for the fewest GPU-seconds beside what it has
    planned, to the least loaded of equals. One that has not started moves to a pod that runs out of work.

    Args:
        world_size: number of ranks.
        pod_size: ranks of a pod; the last one may have fewer.
        shapes: what requests cost.
        make_planner: a planner for that many ranks.
        gatherer: as for `Pod`.
        use_idle: as for `Pod`.
    """

    def __init__(
        self,
        world_size: int,
        pod_size: int,
        shapes: ShapeRows,
        make_planner: Callable[[int], Planner],
        gatherer: Gatherer,
        *,
        use_idle: bool,
    ) -> None:
        self._pod_size, self._shapes = pod_size, shapes
        self._members: list[Member] = []
        for start in range(0, world_size, pod_size):
            ranks = range(start, min(start + pod_size, world_size))
            planner = make_planner(len(ranks))
            self._members.append(Member(ranks, Pod(ranks, shapes, planner, gatherer, use_idle=use_idle), planner))
        self._home: dict[str, Member] = {}
        self._seen: dict[int, RequestView] = {}
        self._seen_ranks: dict[int, RankView] = {}

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """The plans of all pods where something changed, and when the next one is due."""
        self._note_ranks(view)
        self._note_requests(view, now_s)
        # Those that have waited for longest first, or the last pods would never have their turn in a busy world.
        due = sorted((m for m in self._members if m.wake_at_s <= now_s), key=lambda member: member.planned_s)
        at_once = max(1, _RANKS_PER_PLAN // self._pod_size)
        plans = [self._plan(member, view, now_s) for member in due[:at_once]]
        if len(due) <= at_once:
            self._balance(now_s)
        assignments = tuple(assignment for plan in plans for assignment in plan.assignments)
        wake_at_s = min((member.wake_at_s for member in self._members), default=math.inf)
        if len(self._seen) < len(view.requests):
            wake_at_s = now_s
        return Plan(assignments, max(wake_at_s, now_s + _AT_ONCE_S) if wake_at_s < math.inf else None)

    def forecast(self, view: SchedulerView, request_id: str, now_s: float) -> float | None:
        """When a request should have its image, by a plan of its pod of which nothing is run."""
        self._note_ranks(view)
        self._note_requests(view, now_s)
        member = self._home.get(request_id)
        return None if member is None else member.pod.forecast(_view_of(member, view), request_id, now_s)

    # -- what changed ---------------------------------------------------------------------------------

    def _note_ranks(self, view: SchedulerView) -> None:
        current = dict(zip(map(id, view.ranks), view.ranks, strict=True))
        for key in current.keys() - self._seen_ranks.keys():
            rank = current[key]
            member = self._members[rank.rank // self._pod_size]
            member.rank_views[rank.rank] = rank
            member.wake_at_s = -math.inf
        for key in self._seen_ranks.keys() - current.keys():
            rank = self._seen_ranks[key]
            member = self._members[rank.rank // self._pod_size]
            if member.rank_views[rank.rank] is rank:
                del member.rank_views[rank.rank]
                member.wake_at_s = -math.inf
        self._seen_ranks = current

    def _note_requests(self, view: SchedulerView, now_s: float) -> None:
        """Views are compared by identity: the engine makes a new one only where something changed."""
        current = dict(zip(map(id, view.requests), view.requests, strict=True))
        new: list[RequestView] = []
        for key in current.keys() - self._seen.keys():
            request = current[key]
            member = self._home.get(request.request.request_id)
            if member is None or not member.rank_views:
                new.append(request)
            else:
                member.requests[request.request.request_id] = request
                member.wake_at_s = -math.inf
        for key in self._seen.keys() - current.keys():
            self._drop(self._seen[key])
        new.sort(key=lambda request: (request.request.arrival_s, request.request.request_id))
        for request in new[_NEW_PER_PLAN:]:
            del current[id(request)]
        self._assign(new[:_NEW_PER_PLAN], now_s)
        self._seen = current
        if len(self._seen_ranks) < self._members[-1].ranks.stop:
            self._leave_lost_pods(now_s)

    def _drop(self, request: RequestView) -> None:
        """Forget a request, unless there is a newer view of it."""
        request_id = request.request.request_id
        member = self._home.get(request_id)
        if member is not None and member.requests.get(request_id) is request:
            del member.requests[request_id], self._home[request_id]
            member.wake_at_s = -math.inf

    def _leave_lost_pods(self, now_s: float) -> None:
        for member in self._members:
            if not member.rank_views and member.requests:
                orphans = list(member.requests.values())
                member.requests.clear()
                self._assign(orphans, now_s)

    # -- who goes where -------------------------------------------------------------------------------

    def _assign(self, new: list[RequestView], now_s: float) -> None:
        if not new:
            return
        trials = max(1, _TRIALS_PER_PLAN // len(new))
        loads = np.array([member.load if member.rank_views else math.inf for member in self._members])
        for request in new:
            if trials == 1:
                index = int(loads.argmin())
            else:
                index = self._best_pod(request, np.argsort(loads, kind="stable")[:trials].tolist(), now_s)
            self._move(request, self._members[index])
            loads[index] = self._members[index].load

    def _best_pod(self, request: RequestView, indices: list[int], now_s: float) -> int:
        """The pod where the request costs the fewest GPU-seconds; the first of equals."""
        best, least = indices[0], math.inf
        for index in indices:
            cost = self._members[index].planner.try_to_add(request, now_s)
            if cost < least - 1e-9:
                best, least = index, cost
        if least < math.inf:
            planner = self._members[best].planner
            planner.try_to_add(request, now_s)
            planner.keep_added()
        return best

    def _move(self, request: RequestView, member: Member) -> None:
        request_id = request.request.request_id
        old = self._home.get(request_id)
        if old is not None and old.requests.pop(request_id, None) is not None:
            old.wake_at_s = -math.inf
        self._home[request_id] = member
        member.requests[request_id] = request
        member.load += self._load_of(request, member)
        member.wake_at_s = -math.inf

    def _balance(self, now_s: float) -> None:
        """Pods with idle ranks and nothing that waits take what others have not started; planned at once afterwards.

        Only where the other pod still has more to do without it, so that nothing goes to and fro.
        """
        takers = [m for m in self._members if m.pod.num_idle and m.rank_views and not m.pod.unserved]
        for taker in takers[:_MOVES_PER_PLAN]:
            donor = max(self._members, key=lambda member: member.load if member.pod.unserved else -1.0)
            movable = [request for request in donor.pod.unserved if self._may_move(request, donor, taker)]
            if not movable:
                return
            request = min(movable[:_MOVE_TRIALS], key=lambda one: taker.planner.try_to_add(one, now_s))
            donor.pod.unserved.remove(request)
            donor.load -= self._load_of(request, donor)
            self._move(request, taker)

    def _may_move(self, request: RequestView, donor: Member, taker: Member) -> bool:
        here = donor.requests.get(request.request.request_id) is request
        return here and donor.load - self._load_of(request, donor) > taker.load

    def _plan(self, member: Member, view: SchedulerView, now_s: float) -> Plan:
        plan = member.pod.plan(_view_of(member, view), now_s)
        member.wake_at_s = math.inf if plan.wake_at_s is None else plan.wake_at_s
        member.planned_s = now_s
        member.load = sum(self._load_of(request, member) for request in member.requests.values())
        return plan

    def _load_of(self, request: RequestView, member: Member) -> float:
        costs = self._shapes.costs(self._shapes.row(request.request))
        return request.remaining_steps * costs.efficient[0].gpu_seconds / max(1, len(member.rank_views))


def _view_of(member: Member, view: SchedulerView) -> SchedulerView:
    """What one pod sees."""
    ranks: Iterable[RankView] = (member.rank_views[rank] for rank in member.ranks if rank in member.rank_views)
    return SchedulerView(tuple(member.requests.values()), tuple(ranks), view.world_size, view.lead_s)
