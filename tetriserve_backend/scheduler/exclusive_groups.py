"""Policies that give each request a group of its own from its first segment to its last."""

from collections.abc import Callable

from tetriserve_backend.domain import Assignment, Placement, Plan, Request
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.groups import Ranks, whole_groups
from tetriserve_backend.scheduler.stages import chain
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s


class ExclusiveGroupPolicy:
    """First come, first served on aligned groups; a group belongs to its request until that is done.

    A request whose shape cannot run at the size of its group uses the largest degree that it can, and the
    other ranks of the group stay idle, as they do in a server that runs at one fixed degree. While lost
    ranks leave no whole group of the wanted size, the next smaller size takes its place.

    Args:
        name: the name by which configuration chooses this policy.
        costs: what shapes cost.
        group_size: the group that a request wants, in ranks (a power of two).
        max_segment_steps: steps sent at a time.
        backfill: whether a later request may start while an earlier one waits for its group.
        patience_s: with backfill, a request that is late by more than this gets its group reserved, so that
            nobody starves: later ones may start only where that does not hold it up (EASY backfilling).
            None never reserves.
    """

    def __init__(
        self,
        name: str,
        costs: CostModel,
        group_size: Callable[[Request], int],
        *,
        max_segment_steps: int,
        backfill: bool,
        patience_s: float | None = 0.0,
    ) -> None:
        self._name, self._costs, self._group_size = name, costs, group_size
        self._max_segment_steps, self._backfill, self._patience_s = max_segment_steps, backfill, patience_s
        self._group_of: dict[str, Ranks] = {}

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""
        return self._name

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Next pieces for the groups in use, and first pieces for the requests that get a group."""
        self._forget(view)
        available = frozenset(view.available_ranks(now_s))
        going_on = [
            request
            for request in view.requests
            if view.is_ready(request, now_s) and available.issuperset(self._group_of.get(_id(request), (-1,)))
        ]
        assignments: list[Assignment] = []
        ends_s: list[float] = []
        for request in going_on + self._admit(view, available, now_s):
            group = self._group_of[_id(request)]
            costs = self._costs.of(request.request)
            degree = costs.widest_within(len(group))
            steps = min(self._max_segment_steps, request.remaining_steps)
            assignments += chain(request, Placement(group[:degree]), steps)
            ends_s.append(max(now_s, request.ready_at_s) + costs.chain_s(request, degree, steps))
        waiting = any(_id(request) not in self._group_of for request in view.requests)
        return Plan(tuple(assignments), next_wake_s(view, now_s, ends_s, with_ranks=waiting))

    def _forget(self, view: SchedulerView) -> None:
        """Drop the groups of requests that are done and of those that lost a rank."""
        present = {_id(request) for request in view.requests}
        usable = {rank.rank for rank in view.ranks}
        self._group_of = {
            request_id: group
            for request_id, group in self._group_of.items()
            if request_id in present and usable.issuperset(group)
        }

    def _admit(self, view: SchedulerView, available: frozenset[int], now_s: float) -> list[RequestView]:
        """Give groups to waiting requests, first come first served; returns those that got one."""
        free_at_s = self._expected_free_s(view, now_s)
        admitted: list[RequestView] = []
        reserved: Ranks = ()
        reserved_from_s = 0.0
        taken = {rank for group in self._group_of.values() for rank in group}
        for request in view.requests:
            request_id = _id(request)
            if request_id in self._group_of or not view.is_ready(request, now_s):
                continue
            groups = self._groups_for(request, view)
            until_s = now_s + self._seconds_left(request, len(groups[0]) if groups else 1)
            for group in groups:
                free = available.issuperset(group) and taken.isdisjoint(group)
                if free and (until_s <= reserved_from_s or not set(reserved).intersection(group)):
                    self._group_of[request_id] = group
                    taken.update(group)
                    admitted.append(request)
                    free_at_s.update(dict.fromkeys(group, until_s))
                    break
            else:
                if not self._backfill:
                    break
                if groups and not reserved and self._has_waited_enough(request.request, now_s):
                    reserved = min(groups, key=lambda group: max(free_at_s[rank] for rank in group))
                    reserved_from_s = max(free_at_s[rank] for rank in reserved)
        return admitted

    def _has_waited_enough(self, request: Request, now_s: float) -> bool:
        return self._patience_s is not None and now_s >= request.deadline_s + self._patience_s

    def _groups_for(self, request: RequestView, view: SchedulerView) -> list[Ranks]:
        usable = [rank.rank for rank in view.ranks]
        size = self._group_size(request.request)
        while size:
            groups = whole_groups(view.world_size, size, usable)
            if groups:
                return groups
            size //= 2
        return []

    def _seconds_left(self, request: RequestView, size: int) -> float:
        costs = self._costs.of(request.request)
        pieces = -(-request.remaining_steps // self._max_segment_steps)
        whole_s = costs.chain_s(request, costs.widest_within(size), request.remaining_steps)
        return whole_s + max(0, pieces - 1) * costs.dispatch_s

    def _expected_free_s(self, view: SchedulerView, now_s: float) -> dict[int, float]:
        """When each usable rank should be done with what was sent to it and with the request that owns it."""
        free_at_s = {rank.rank: max(now_s, rank.free_at_s) for rank in view.ranks}
        for request in view.requests:
            group = self._group_of.get(_id(request))
            if group is not None:
                until_s = max(now_s, request.ready_at_s) + self._seconds_left(request, len(group))
                for rank in group:
                    free_at_s[rank] = max(free_at_s[rank], until_s)
        return free_at_s


def _id(request: RequestView) -> str:
    return request.request.request_id
