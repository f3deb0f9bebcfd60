"""What the policy sees, kept up to date piece by piece: only what changed since the last look is made anew."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.ledger import Resource, SegmentLedger
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView

_LOOK_AGAIN_S = 0.05
"""How soon a policy that waits for a rank or request without a known end may look again."""


class ViewKeeper:
    """Makes each `SchedulerView`.

    A view of a thousand ranks and thousands of requests shares nearly all of its parts with the one before,
    so the cost of an event follows what it changed. Idle ranks and requests keep the time from which they
    were idle as `free_at_s` and `ready_at_s`, which may lie in the past.

    Args:
        ledger: tells which ranks and requests changed.
        settings: see `EngineSettings`.
    """

    def __init__(self, ledger: SegmentLedger, settings: EngineSettings) -> None:
        self._ledger, self._settings = ledger, settings
        self._rank_views: dict[int, RankView] = {}
        self._behind: set[int] = set()
        self._request_views: dict[str, RequestView] = {}
        self._shown_ranks: tuple[int, ...] = ()
        self._shown: tuple[RankView, ...] = ()
        self._held = False
        self._slow_ranks: Mapping[int, float] = {}
        self._changed_ranks: set[int] = set()

    def show(self, state: RequestState, now_s: float) -> None:
        """A request has arrived: the last one in order of arrival."""
        self._refresh_request(state.request.request_id, state, now_s)

    def hide(self, request_id: str) -> None:
        """A request has ended."""
        self._request_views.pop(request_id, None)

    def slow_down(self, slow_ranks: Mapping[int, float]) -> None:
        """From now on these ranks, and no others, take so many times as long as they should."""
        if slow_ranks is not self._slow_ranks:
            self._changed_ranks.update(slow_ranks, self._slow_ranks)
            self._slow_ranks = slow_ranks

    def show_again(self, states: Iterable[RequestState], now_s: float) -> None:
        """A request that had all its work sent needs more: all of them anew, in order of arrival."""
        self._request_views.clear()
        for state in states:
            self.show(state, now_s)

    def view(
        self, states: Mapping[str, RequestState], usable_ranks: tuple[int, ...], world_size: int, now_s: float
    ) -> SchedulerView:
        """What the policy sees at `now_s`."""
        ranks_changed = self._refresh(states, now_s)
        late = self._ledger.late_resources(now_s)
        if ranks_changed or late or self._held or usable_ranks is not self._shown_ranks:
            self._held = bool(late or self._behind)
            if usable_ranks is not self._shown_ranks:
                self._shown_ranks = usable_ranks
                for rank in usable_ranks:
                    self._rank_views.setdefault(rank, RankView(rank, 0.0, 0))
            self._shown = tuple([self._rank_views[rank] for rank in usable_ranks])
            if self._held:
                self._shown = tuple(self._hold_back(view, late, now_s) for view in self._shown)
        requests = tuple(self._request_views.values())
        if late:
            requests = tuple(self._hold_late(request, late, now_s) for request in requests)
        return SchedulerView(requests, self._shown, world_size, self._settings.lead_s)

    def _refresh(self, states: Mapping[str, RequestState], now_s: float) -> bool:
        """Bring what the ledger changed up to date; whether there was a rank among it."""
        ranks_changed = bool(self._changed_ranks)
        while self._changed_ranks:
            self._refresh_rank(self._changed_ranks.pop(), now_s)
        for resource in self._ledger.take_changes():
            if isinstance(resource, int):
                ranks_changed = True
                self._refresh_rank(resource, now_s)
            elif resource in states:
                self._refresh_request(resource, states[resource], now_s)
        return ranks_changed

    def _refresh_rank(self, rank: int, now_s: float) -> None:
        depth = self._ledger.depth(rank)
        self._rank_views[rank] = RankView(
            rank, self._ledger.free_at_s(rank, now_s), depth, self._slow_ranks.get(rank, 1.0)
        )
        # Past this depth a rank takes nothing more, whatever the table says of when it is free.
        if depth >= self._settings.max_queue_depth:
            self._behind.add(rank)
        else:
            self._behind.discard(rank)

    def _hold_back(self, view: RankView, late: Set[Resource], now_s: float) -> RankView:
        if view.rank in self._behind or view.rank in late:
            return replace(view, free_at_s=max(view.free_at_s, self._not_before_s(now_s)))
        return view

    def _hold_late(self, view: RequestView, late: Set[Resource], now_s: float) -> RequestView:
        """A request whose segment is late gets nothing more: it would drag other ranks into its wait."""
        if view.request.request_id not in late:
            return view
        return replace(view, ready_at_s=max(view.ready_at_s, self._not_before_s(now_s)))

    def _not_before_s(self, now_s: float) -> float:
        return now_s + self._settings.lead_s + _LOOK_AGAIN_S

    def _refresh_request(self, request_id: str, state: RequestState, now_s: float) -> None:
        next_kind = state.sent.next_kind(state.request.num_steps)
        if next_kind is None or state.rolling_back:
            self._request_views.pop(request_id, None)
            return
        self._request_views[request_id] = RequestView(
            request=state.request,
            next_kind=next_kind,
            remaining_steps=state.request.num_steps - state.sent.steps,
            ready_at_s=self._ledger.free_at_s(request_id, now_s),
            placement=state.placement,
            in_flight=self._ledger.depth(request_id),
            runs_alone=state.runs_alone,
        )
