"""Ranks wait for what a request has elsewhere, and for nothing that they have."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from tests.unit.simulator.conftest import ENCODE_S, STEP_S, make_request, small_table
from tetriserve_backend.domain import Assignment, Placement, Plan, SegmentKind
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.simulator.virtual_world import VirtualWorld

DISPATCH_S, WIDER_S, ELSEWHERE_S = 0.001, 0.004, 0.006
MOVES = {((0,), (0, 1)): DISPATCH_S + WIDER_S, ((0,), (1,)): DISPATCH_S + ELSEWHERE_S}


@dataclass
class OneByOne:
    """Sends one request a step at a time over these ranks, each when the one before has ended."""

    ranks: list[tuple[int, ...]]
    name: str = "one by one"
    _sent: list[SegmentKind] = field(default_factory=list)

    def plan(self, view, now_s):
        (request,) = view.requests
        if request.in_flight:
            return Plan(())
        kind, ids = request.next_kind, (request.request.request_id,)
        ranks = self.ranks.pop(0) if kind is SegmentKind.DENOISE else (self.ranks[0][:1] if self.ranks else (0,))
        return Plan((Assignment(kind, ids, Placement(ranks), 1 if kind is SegmentKind.DENOISE else 0),))


def test_each_step_begins_later_by_what_the_move_to_its_ranks_costs():
    table = small_table(dispatch_s=DISPATCH_S, moves=MOVES)
    ranks = [(0,), (0,), (0, 1), (0,), (1,)]
    spans = []
    core = EngineCore(OneByOne(list(ranks)), table, 2, EngineSettings(lead_s=0.0))
    world = VirtualWorld(core, table, 2, on_segment=lambda segment, start_s, end_s: spans.append((start_s, end_s)))
    (outcome,) = world.run([make_request("a", num_steps=len(ranks))])
    assert outcome.outcome == "finish"
    took_s = [end_s - start_s for start_s, end_s in spans]
    assert took_s[0] == pytest.approx(DISPATCH_S + ENCODE_S)
    extra_s = [0.0, 0.0, WIDER_S, 0.0, ELSEWHERE_S]
    for seconds, on, waits_s in zip(took_s[1:-1], ranks, extra_s, strict=True):
        assert seconds == pytest.approx(DISPATCH_S + STEP_S[256][len(on)] + waits_s)
    assert all(before[1] == pytest.approx(after[0]) for before, after in pairwise(spans))
