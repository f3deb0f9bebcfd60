"""Elastic scale-up: ranks that would idle double the degree of whoever gains most (§4.2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.candidates import Candidate, RoundWindow
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.groups import GroupBudget


@dataclass(slots=True)
class Share:
    """What a candidate or a batch of several gets of the round; owned and changed by the planning of that round only.

    The candidates of a batch are at its pace (`candidates.in_batch`).
    """

    candidates: tuple[Candidate, ...]
    sp_degree: int
    num_steps: int

    @property
    def batch(self) -> Batch:
        """The requests."""
        return Batch(tuple(candidate.request for candidate in self.candidates))

    @property
    def costs(self) -> ShapeCosts:
        """What their steps cost."""
        return self.candidates[0].costs

    @property
    def window(self) -> RoundWindow:
        """The time that it is for."""
        return self.candidates[0].window

    def steps_at(self, sp_degree: int) -> int:
        """Steps that the round can hold at a degree, until the first of the requests is done."""
        return min(candidate.steps_at(sp_degree) for candidate in self.candidates)


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
                step_s = share.costs.step_s
                gain = step_s[share.sp_degree] / step_s[wider]
                if best is None or gain > best[0]:
                    best = (gain, share, wider)
        if best is None:
            return
        _, share, wider = best
        budget.give_back(share.sp_degree)
        budget.take(wider)
        share.sp_degree, share.num_steps = wider, share.steps_at(wider)


def _next_faster_degree(share: Share) -> int | None:
    step_s = share.costs.step_s
    now_s = step_s[share.sp_degree]
    return next((degree for degree, s in step_s.items() if degree > share.sp_degree and s < now_s), None)


def _fits_instead(degree: int, wider: int, budget: GroupBudget) -> bool:
    budget.give_back(degree)
    fits = budget.fits(wider)
    budget.take(degree)
    return fits
