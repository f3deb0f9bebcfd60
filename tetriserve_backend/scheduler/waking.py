"""When a policy should be asked again, so that ranks get their next work before they run dry."""

from collections.abc import Iterable

from tetriserve_backend.scheduler.view import SchedulerView

_SOONEST_S = 1e-4
"""Keeps a wake-up that rounding puts at `now` from becoming a busy loop."""


def next_wake_s(view: SchedulerView, now_s: float, sent_ends_s: Iterable[float], *, with_ranks: bool) -> float | None:
    """The next moment at which work may be sent ahead: `lead_s` before something in flight should end.

    None when nothing is in flight beyond `lead_s`; events alone wake the policy then.

    Args:
        view: what is in flight.
        now_s: the time of this call.
        sent_ends_s: when the work that the plan of this very call sends should end.
        with_ranks: also wait for ranks, not only for requests that have a next segment.
    """
    horizon_s = now_s + view.lead_s
    ends = [end_s for end_s in sent_ends_s if end_s > horizon_s]
    ends += [request.ready_at_s for request in view.requests if request.ready_at_s > horizon_s]
    if with_ranks:
        ends += [rank.free_at_s for rank in view.ranks if rank.free_at_s > horizon_s]
    if not ends:
        return None
    return wake_ahead_s(view, now_s, min(ends))


def wake_ahead_s(view: SchedulerView, now_s: float, at_s: float) -> float:
    """When to wake so that work can be sent `lead_s` before `at_s`; never at or before `now_s`."""
    return max(at_s - view.lead_s, now_s + _SOONEST_S)
