"""How long work should take, and when a new request can be expected to finish."""

from collections.abc import Iterable

from tetriserve_backend.domain import Request, Segment, SegmentKind
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, work_of


def segment_seconds(tables: LatencyTables, segment: Segment) -> float:
    """Seconds from the moment that a segment's ranks are free to its end."""
    table = tables.of(segment.model)
    return work_seconds(table, segment) + table.dispatch_s


def work_seconds(table: LatencyTable, segment: Segment) -> float:
    """Seconds that a segment's ranks work at it, as they report them: without dispatch."""
    return num_works(segment) * table.seconds(work_of(segment))


def num_works(segment: Segment) -> int:
    """How often a segment does its work (`work_of`)."""
    return segment.num_steps if segment.kind is SegmentKind.DENOISE else 1


def tells_times_of(table: LatencyTable, requests: Iterable[Request]) -> bool:
    """Whether the table tells the times of such requests.

    It knows nothing of previews and of texts of other lengths, and of a model with guidance only what guided steps
    take.
    """
    return not any(
        request.preview
        or request.max_sequence_length is not None
        or (table.is_guided and not request.asks_for_guidance)
        for request in requests
    )


def fastest_latency_s(table: LatencyTable, height: int, width: int, num_steps: int) -> float:
    """Seconds that an image takes on ranks that have nothing else to do."""
    return table.encode_s() + num_steps * table.fastest_step_s(height, width) + table.decode_s(height, width)


class Backlog:
    """GPU-seconds that the requests here still need if each runs on its cheapest degree, the lowest.

    A running total, so that an arrival costs the same however many wait. It is kept in whole nanoseconds: it
    must not drift over millions of requests, nor depend on the order of events.
    """

    def __init__(self, tables: LatencyTables) -> None:
        self._tables = tables
        self._left_ns: dict[str, int] = {}
        self._total_ns = 0

    @property
    def gpu_seconds(self) -> float:
        """The total over all requests."""
        return self._total_ns / 1e9

    def update(self, state: RequestState) -> None:
        """A request has arrived or got further."""
        left_ns = round(1e9 * _gpu_seconds_left(self._tables.of(state.request.model), state))
        self._total_ns += left_ns - self._left_ns.get(state.request.request_id, 0)
        self._left_ns[state.request.request_id] = left_ns

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        self._total_ns -= self._left_ns.pop(request_id)


def _gpu_seconds_left(table: LatencyTable, state: RequestState) -> float:
    request = state.request
    degree = table.degrees(request.height, request.width)[0]
    steps = request.num_steps - state.done.steps
    gpu_seconds = steps * degree * table.step_s(request.height, request.width, degree)
    gpu_seconds += table.decode_s(request.height, request.width)
    return gpu_seconds + (0.0 if state.done.encoded else table.encode_s())


def predict_finish_s(
    table: LatencyTable, request: Request, ahead_gpu_seconds: float, num_ranks: int, now_s: float
) -> float:
    """A first-come estimate: the work ahead spread over all ranks, then this request at its fastest."""
    own_s = fastest_latency_s(table, request.height, request.width, request.num_steps)
    return now_s + ahead_gpu_seconds / max(1, num_ranks) + own_s
