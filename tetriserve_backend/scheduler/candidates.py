"""A request as a round sees it: how late it is, how far it gets at each degree, and whether it then survives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.scheduler.allocation import Allocation, allocate
from tetriserve_backend.scheduler.costs import CostModel, ShapeCosts
from tetriserve_backend.scheduler.packing import PackItem, PackOption
from tetriserve_backend.scheduler.view import RequestView

_TOLERANCE = 1e-9

SURVIVOR_VALUE = 1 << 40
"""One survivor outweighs whatever else a packing could be worth."""


@dataclass(frozen=True, slots=True)
class RoundWindow:
    """The time slice that is being planned: a round, or what is left of one (`is_rest`), which nothing may outlast."""

    start_s: float
    length_s: float
    is_rest: bool = False

    @property
    def end_s(self) -> float:
        """The boundary at which the next round starts."""
        return self.start_s + self.length_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that may run in the round.

    Attributes:
        max_steps: whole steps that fit into the round at each usable degree, behind an encode if one is due;
            where not one fits into a whole round at any degree, one at the fastest, which then outlasts it.
        lead_in_s: seconds before its first step (encode, dispatch).
        tail_s: seconds behind its last step (decode, and the dispatch of the rounds in between).
        slack_s: deadline minus the earliest possible finish; negative for a request that is late already.
    """

    request: RequestView
    costs: ShapeCosts
    window: RoundWindow
    max_steps: dict[int, int]
    lead_in_s: float
    tail_s: float
    slack_s: float

    @property
    def is_late(self) -> bool:
        """Whether no degree makes the deadline any more."""
        return self.slack_s < -_TOLERANCE

    def steps_at(self, sp_degree: int) -> int:
        """Steps that the round can hold of this request at a degree."""
        return min(self.request.remaining_steps, self.max_steps[sp_degree])

    def survives(self, num_steps: int, sp_degree: int) -> bool:
        """Whether the deadline can still be met after `num_steps` steps (0: idle) in this round (§4.2.2)."""
        left = self.request.remaining_steps - num_steps
        busy_until_s = self.window.start_s + self.lead_in_s + num_steps * self.costs.step_s[sp_degree]
        if left == 0:
            # What ends within the round need not wait for its boundary.
            end_s = busy_until_s
        elif num_steps:
            end_s = max(self.window.end_s, busy_until_s) + left * self.costs.fastest.step_s
        else:
            end_s = self.window.end_s + self.lead_in_s + left * self.costs.fastest.step_s
        return end_s + self.tail_s <= self.request.request.deadline_s + _TOLERANCE

    def pack_item(self, widest: int) -> PackItem:
        """The request's options for the knapsack: the parts of its least-GPU-seconds allocation.

        Degrees above `widest`, for which no whole group is free, are no options.
        """
        remaining = self.request.remaining_steps
        time_left_s = self.slack_s + remaining * self.costs.fastest.step_s
        usable = [cost for cost in self.costs.efficient if self.max_steps[cost.sp_degree] and cost.sp_degree <= widest]
        parts = allocate(remaining, usable, time_left_s)
        if usable and not parts:
            # Only a wider group than any free one would do: go as fast as the free ones allow.
            parts = (Allocation(remaining, usable[-1].sp_degree),)
        options = []
        for part in parts:
            steps = min(part.num_steps, self.max_steps[part.sp_degree])
            value = 1 + (SURVIVOR_VALUE if self.survives(steps, part.sp_degree) else 0)
            options.append(PackOption(part.sp_degree, steps, value))
        return PackItem(SURVIVOR_VALUE if self.survives(0, 1) else 0, tuple(options))


def make_candidates(requests: Iterable[RequestView], model: CostModel, window: RoundWindow) -> list[Candidate]:
    """Candidates of the requests, in their order; for the rest of a round only those of which a step fits into it."""
    steps_of: dict[tuple[str, int, int, bool], dict[int, int]] = {}
    candidates = []
    for view in requests:
        request, costs = view.request, model.of(view.request)
        encodes = view.next_kind is SegmentKind.ENCODE
        lead_in_s = (costs.encode_s if encodes else 0.0) + costs.dispatch_s
        key = (request.model, request.height, request.width, encodes)
        max_steps = steps_of.get(key)
        if max_steps is None:
            max_steps = steps_of[key] = _max_steps(costs, window, lead_in_s)
        if not any(max_steps.values()):
            continue
        fastest = costs.fastest
        rounds = view.remaining_steps // max(1, max_steps[fastest.sp_degree])
        tail_s = costs.decode_s + rounds * costs.dispatch_s
        finish_s = window.start_s + lead_in_s + view.remaining_steps * fastest.step_s + tail_s
        slack_s = request.deadline_s - finish_s
        candidates.append(Candidate(view, costs, window, max_steps, lead_in_s, tail_s, slack_s))
    return candidates


def in_batch(members: Sequence[Candidate], costs: ShapeCosts, sp_degree: int) -> list[Candidate]:
    """The same requests at the pace of a batch of all of them, until their ends.

    Encodes and decodes come one after the other, `sp_degree` at a time. A degree at which no step fits into the
    round has none.

    Args:
        members: of one model, resolution and round, each in no batch.
        costs: of batches of that size.
        sp_degree: the least degree at which the batch runs.
    """
    num_encodes = sum(member.request.next_kind is SegmentKind.ENCODE for member in members)
    lead_in_s = -(-num_encodes // sp_degree) * costs.encode_s + costs.dispatch_s
    further_decodes_s = (-(-len(members) // sp_degree) - 1) * costs.decode_s
    max_steps = _whole_steps(costs, members[0].window.length_s - lead_in_s)
    return [
        replace(member, costs=costs, max_steps=max_steps, lead_in_s=lead_in_s, tail_s=member.tail_s + further_decodes_s)
        for member in members
    ]


def _whole_steps(costs: ShapeCosts, room_s: float) -> dict[int, int]:
    room_s = max(0.0, room_s) + _TOLERANCE
    return {degree: int(room_s / step_s) for degree, step_s in costs.step_s.items()}


def _max_steps(costs: ShapeCosts, window: RoundWindow, lead_in_s: float) -> dict[int, int]:
    max_steps = _whole_steps(costs, window.length_s - lead_in_s)
    if not window.is_rest and not any(max_steps.values()):
        max_steps[costs.fastest.sp_degree] = 1
    return max_steps
