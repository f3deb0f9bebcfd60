"""What a run comes to: SLO attainment, latencies, use of the GPUs, decision times."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from tetriserve_backend.domain import Segment, SegmentKind
from tetriserve_backend.simulator.quantiles import QuantileSketch
from tetriserve_backend.simulator.virtual_world import Outcome

_CDF_POINTS = 200


@dataclass(frozen=True, slots=True)
class PredictionQuality:
    """How far the predictions made at arrival could be trusted; of the requests that finished.

    Attributes:
        expected_on_time: requests whose deadline was expected to hold.
        kept: how many of these were on time.
        mean_error_s: mean of |finish − predicted finish|.
    """

    expected_on_time: int
    kept: int
    mean_error_s: float


@dataclass(frozen=True, slots=True)
class ResolutionSummary:
    """Requests of one resolution."""

    requests: int
    on_time: int
    mean_latency_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy on one trace.

    Attributes:
        labels: what the run was about (mix, rate, SLO scale, seed, …), as the trace's maker said.
        outcomes: requests by how they ended: finish, reject, cancel, fail.
        latency_cdf_s: latencies of finished requests at evenly spaced shares 0 … 1.
        gpu_utilization: GPU-seconds of segments over GPU-seconds from the first arrival to the last event.
        mean_sp: degree of the average denoising step, by resolution.
        decision_ms: wall-clock milliseconds of the policy's plans.
        bound_on_time: no policy can serve more requests in time; None if it was not computed.
    """

    policy: str
    gpus: int
    requests: int
    on_time: int
    outcomes: dict[str, int]
    latency_s: dict[str, float]
    latency_cdf_s: list[float]
    by_resolution: dict[str, ResolutionSummary]
    gpu_utilization: float
    mean_sp: dict[str, float]
    makespan_s: float
    decision_ms: dict[str, float]
    prediction: PredictionQuality
    bound_on_time: int | None = None
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def slo_attainment(self) -> float:
        """On time over submitted; 1 for an empty trace."""
        return self.on_time / self.requests if self.requests else 1.0

    @property
    def on_time_per_gpu_second(self) -> float:
        """On-time requests per second that a GPU was busy, encode and decode included; 0 if none was."""
        busy_gpu_s = self.gpu_utilization * self.gpus * self.makespan_s
        return self.on_time / busy_gpu_s if busy_gpu_s else 0.0

    @property
    def bound(self) -> float | None:
        """The bound on `slo_attainment`, if it was computed."""
        if self.bound_on_time is None:
            return None
        return self.bound_on_time / self.requests if self.requests else 1.0

    def named(self, policy: str) -> "Summary":
        """The same summary under another name, such as that of a variant of the policy."""
        return replace(self, policy=policy)

    def to_dict(self) -> dict[str, Any]:
        """The values of a `*.summary.json`."""
        values = asdict(self)
        values["slo_attainment"] = self.slo_attainment
        values["goodput_rps"] = self.on_time / self.makespan_s if self.makespan_s else 0.0
        values["bound"] = self.bound
        values["on_time_per_gpu_second"] = self.on_time_per_gpu_second
        return values

    @classmethod
    def from_dict(cls, values: object) -> "Summary":
        """A summary read back; what follows from its fields is made anew.

        Raises:
            ValidationError: a field is missing or of the wrong kind.
        """
        return _SUMMARY.validate_python(values)


_SUMMARY = TypeAdapter(Summary)


@dataclass(slots=True)
class _Shape:
    requests: int = 0
    on_time: int = 0
    finished: int = 0
    latency_sum_s: float = 0.0
    steps: int = 0
    degree_steps: int = 0


class SummaryBuilder:
    """Counts outcomes and segments as they happen, in memory that does not grow with their number."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._latency = QuantileSketch()
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._outcomes: Counter[str] = Counter()
        self._busy_gpu_s = 0.0
        self._first_arrival_s: float | None = None
        self._end_s = 0.0
        self._expected = self._kept = 0
        self._error_sum_s = 0.0

    def add_outcome(self, outcome: Outcome) -> None:
        """A request has ended."""
        request = outcome.request
        shape = self._shape(request.height, request.width)
        shape.requests += 1
        self._outcomes[outcome.outcome] += 1
        self._end_s = max(self._end_s, outcome.end_s)
        if self._first_arrival_s is None or request.arrival_s < self._first_arrival_s:
            self._first_arrival_s = request.arrival_s
        if outcome.outcome != "finish":
            return
        latency_s = outcome.end_s - request.arrival_s
        self._latency.add(latency_s)
        shape.finished += 1
        shape.latency_sum_s += latency_s
        shape.on_time += outcome.on_time
        if outcome.predicted_finish_s is not None:
            expected = outcome.predicted_finish_s <= request.deadline_s
            self._expected += expected
            self._kept += expected and outcome.on_time
            self._error_sum_s += abs(outcome.end_s - outcome.predicted_finish_s)

    def add_segment(self, segment: Segment, start_s: float, end_s: float) -> None:
        """A segment has ended well."""
        degree = segment.placement.sp_degree
        self._busy_gpu_s += degree * (end_s - start_s)
        self._end_s = max(self._end_s, end_s)
        if segment.kind is SegmentKind.DENOISE:
            steps = sum(part.num_steps for part in segment.parts)
            shape = self._shape(segment.height, segment.width)
            shape.steps += steps
            shape.degree_steps += steps * degree

    def build(
        self,
        policy: str,
        decision_ms: QuantileSketch,
        *,
        bound_on_time: int | None = None,
        labels: dict[str, Any] | None = None,
    ) -> Summary:
        """The summary of everything counted so far."""
        makespan_s = self._end_s - (self._first_arrival_s or 0.0)
        shapes = {f"{height}x{width}": shape for (height, width), shape in sorted(self._shapes.items())}
        return Summary(
            policy=policy,
            gpus=self._gpus,
            requests=sum(self._outcomes.values()),
            on_time=sum(shape.on_time for shape in shapes.values()),
            outcomes=dict(sorted(self._outcomes.items())),
            latency_s=_spread(self._latency, {"p50": 0.5, "p90": 0.9, "p99": 0.99}),
            latency_cdf_s=_rounded(self._latency.quantiles([i / _CDF_POINTS for i in range(_CDF_POINTS + 1)])),
            by_resolution={
                name: ResolutionSummary(s.requests, s.on_time, round(s.latency_sum_s / max(1, s.finished), 6))
                for name, s in shapes.items()
                if s.requests
            },
            gpu_utilization=self._busy_gpu_s / (self._gpus * makespan_s) if makespan_s > 0 else 0.0,
            mean_sp={name: s.degree_steps / s.steps for name, s in shapes.items() if s.steps},
            makespan_s=makespan_s,
            decision_ms=_spread(decision_ms, {"p50": 0.5, "p99": 0.99}),
            prediction=PredictionQuality(
                self._expected, self._kept, self._error_sum_s / self._latency.count if self._latency.count else 0.0
            ),
            bound_on_time=bound_on_time,
            labels=dict(labels or {}),
        )

    def _shape(self, height: int, width: int) -> _Shape:
        shape = self._shapes.get((height, width))
        if shape is None:
            shape = self._shapes[height, width] = _Shape()
        return shape


def _spread(sketch: QuantileSketch, shares: dict[str, float]) -> dict[str, float]:
    found = dict(zip(shares, sketch.quantiles(list(shares.values())), strict=True))
    return {"mean": sketch.mean, **found, "max": sketch.max, "count": sketch.count}


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]
