"""Elastic scale-up: ranks that would idle double the degree of whoever gains most (§4.2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.scheduler.candidates import Candidate
from tetriserve_backend.scheduler.groups import GroupBudget


@dataclass(slots=True)
class Share:
    """What a candidate gets of the round; owned and changed by the planning of that one round only."""

    candidate: Candidate
    sp_degree: int
    num_steps: int


def scale_up(shares: Sequence[Share], budget: GroupBudget) -> None:
    """Widen shares, largest gain first, until no free rank makes any of them faster.

    A share goes to the next degree with a shorter step: its double, or beyond where the table has a gap.
    The gain is the ratio of the step times, which favours whoever uses the added ranks best.
    """
    while budget.free_ranks:
        best: tuple[float, Share, int] | None = None
        for share in shares:
            wider = _next_faster_degree(share)
            if wider is not None and _fits_instead(share.sp_degree, wider, budget):
                step_s = share.candidate.costs.step_s
                gain = step_s[share.sp_degree] / step_s[wider]
                if best is None or gain > best[0]:
                    best = (gain, share, wider)
        if best is None:
            return
        _, share, wider = best
        budget.give_back(share.sp_degree)
        budget.take(wider)
        share.sp_degree, share.num_steps = wider, share.candidate.steps_at(wider)


def _next_faster_degree(share: Share) -> int | None:
    step_s = share.candidate.costs.step_s
    now_s = step_s[share.sp_degree]
    return next((degree for degree, s in step_s.items() if degree > share.sp_degree and s < now_s), None)


def _fits_instead(degree: int, wider: int, budget: GroupBudget) -> bool:
    budget.give_back(degree)
    fits = budget.fits(wider)
    budget.take(degree)
    return fits
