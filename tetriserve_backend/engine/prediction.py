"""How long work should take, and when a new request can be expected to finish."""

from collections.abc import Iterable

from tetriserve_backend.domain import Request, Segment, SegmentKind
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.latency_table import LatencyTable


def segment_seconds(table: LatencyTable, segment: Segment) -> float:
    """Seconds from the moment that a segment's ranks are free to its end."""
    if segment.kind is SegmentKind.ENCODE:
        busy_s = table.encode_s()
    elif segment.kind is SegmentKind.DECODE:
        busy_s = table.decode_s(segment.height, segment.width)
    else:
        degree, batch = segment.placement.sp_degree, segment.batch_size
        busy_s = segment.num_steps * table.step_s(segment.height, segment.width, degree, batch)
    return busy_s + table.dispatch_s


def fastest_latency_s(table: LatencyTable, request: Request) -> float:
    """Seconds that a request takes on ranks that have nothing else to do."""
    step_s = table.fastest_step_s(request.height, request.width)
    return table.encode_s() + request.num_steps * step_s + table.decode_s(request.height, request.width)


def backlog_gpu_seconds(table: LatencyTable, states: Iterable[RequestState]) -> float:
    """GPU-seconds that these requests still need if each runs on its cheapest degree, the lowest."""
    total = 0.0
    for state in states:
        request = state.request
        degree = table.degrees(request.height, request.width)[0]
        steps = request.num_steps - state.done.steps
        total += steps * degree * table.step_s(request.height, request.width, degree)
        total += table.decode_s(request.height, request.width)
        total += 0.0 if state.done.encoded else table.encode_s()
    return total


def predict_finish_s(
    table: LatencyTable, request: Request, ahead: Iterable[RequestState], num_ranks: int, now_s: float
) -> float:
    """A first-come estimate: the work ahead spread over all ranks, then this request at its fastest."""
    return now_s + backlog_gpu_seconds(table, ahead) / max(1, num_ranks) + fastest_latency_s(table, request)
