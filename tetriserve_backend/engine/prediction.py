"""When a new request can be expected to finish, from the work that is already there."""

from collections.abc import Iterable

from tetriserve_backend.domain import Request
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.latency_table import LatencyTable


def fastest_latency_s(table: LatencyTable, request: Request, steps: int) -> float:
    """Seconds that encode, `steps` steps at the fastest degree and decode take on free ranks."""
    step_s = table.fastest_step_s(request.height, request.width)
    return table.encode_s() + steps * step_s + table.decode_s(request.height, request.width)


def backlog_gpu_seconds(table: LatencyTable, states: Iterable[RequestState]) -> float:
    """GPU-seconds that the requests still need if each runs on its cheapest degree, one rank."""
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
    wait_s = backlog_gpu_seconds(table, ahead) / max(1, num_ranks)
    return now_s + wait_s + fastest_latency_s(table, request, request.num_steps)
