"""Turns what a policy assigns into segments, and counts them as sent."""

from collections.abc import Sequence

from tetriserve_backend.domain import Assignment, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.handover import hand_over, note_sent
from tetriserve_backend.engine.ledger import SegmentLedger
from tetriserve_backend.engine.prediction import segment_seconds
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.latency_table import LatencyTables


class SegmentMaker:
    """Fills in what an assignment leaves open: first steps, split of the guidance, hand-over, expected time, id.

    Args:
        tables: seconds per step, encode and decode, of every model.
        ledger: where each segment is entered.
    """

    def __init__(self, tables: LatencyTables, ledger: SegmentLedger) -> None:
        self._tables, self._ledger = tables, ledger
        self._next_segment_id = 0

    def make(self, assignment: Assignment, states: Sequence[RequestState], slowness: float, now_s: float) -> RunSegment:
        """The segment of a checked assignment, sent at `now_s`.

        Args:
            assignment: a policy's.
            states: of its requests, in that order; they go on from here.
            slowness: how many times as long as the table says its ranks take.
            now_s: seconds, monotonic.
        """
        kind, placement, request = assignment.kind, assignment.placement, states[0].request
        parts = tuple(_part(state, assignment) for state in states)
        segment = Segment(
            self._next_segment_id,
            kind,
            parts,
            placement,
            request.height,
            request.width,
            request.model,
            self._cfg_degree(assignment, states[0]),
        )
        self._next_segment_id += 1
        sources = tuple(hand_over(state, kind, placement) for state in states)
        expected_s = segment_seconds(self._tables, segment) * slowness
        self._ledger.send(segment, expected_s, now_s)
        for state, part in zip(states, parts, strict=True):
            note_sent(state, kind, placement)
            state.sent = state.sent.after(kind, part.num_steps)
            state.placement = placement
        return RunSegment(segment, tuple(state.request for state in states), sources, expected_s)

    def _cfg_degree(self, assignment: Assignment, first: RequestState) -> int:
        if assignment.kind is not SegmentKind.DENOISE:
            return 1
        shape, degree = (first.request.height, first.request.width), assignment.placement.sp_degree
        return self._tables.of(first.request.model).cfg_degree(*shape, degree, len(assignment.request_ids))


def _part(state: RequestState, assignment: Assignment) -> SegmentPart:
    if assignment.kind is not SegmentKind.DENOISE:
        return SegmentPart(state.request.request_id)
    steps = min(assignment.num_steps, state.request.num_steps - state.sent.steps)
    return SegmentPart(state.request.request_id, state.sent.steps, steps)
