"""What the live runs of a policy come to together, and what was predicted of them."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.bench.predicted import Prediction
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.cli.overhead.gaps import RequestIdle, idle_share
from tetriserve_backend.simulator.summary import Summary


@dataclass(frozen=True, slots=True)
class Foretold:
    """One live run on the simulator.

    Attributes:
        by_table: predicted from the measured latency tables.
        at_pace: predicted from these and how fast the ranks were during the run.
        idle: as a run's, at pace: what of it the policy wanted.
    """

    by_table: Prediction
    at_pace: Prediction
    idle: tuple[RequestIdle, ...]


@dataclass(frozen=True, slots=True)
class LiveResult:
    """One live run beside its predictions.

    Attributes:
        live: what happened.
        images_on_time: requests whose image file was there by the deadline.
        errors: why clients got no image, request by request.
        foretold: what the simulator makes of it; None where the timeline is wrong, so that it is not known what came.
        pace: seconds of work over what the table says.
        idle: of each request, see `overhead.gaps.RequestIdle`.
        problems: what is wrong with its timeline.
    """

    run: BenchRun
    live: Summary
    images_on_time: int
    errors: tuple[str, ...]
    foretold: Foretold | None
    pace: float
    idle: tuple[RequestIdle, ...]
    problems: tuple[str, ...]

    @property
    def most_idle(self) -> RequestIdle:
        """The request with the largest share of idle time; of nothing where nothing ran."""
        return max(self.idle, key=lambda one: one.share, default=RequestIdle("nobody", 0.0, 0.0))


@dataclass(frozen=True, slots=True)
class Total:
    """SLO attainment over all requests, and mean latency over those that finished."""

    attained: float
    mean_latency_s: float


@dataclass(frozen=True, slots=True)
class Expected:
    """The mean of several simulations, and their standard deviation."""

    mean: Total
    deviation: Total


def _total(summaries: Sequence[Summary]) -> Total:
    parts = [(summary.latency_s["mean"], summary.latency_s["count"]) for summary in summaries]
    return Total(
        sum(s.on_time for s in summaries) / max(1, sum(s.requests for s in summaries)),
        sum(mean * count for mean, count in parts) / max(1, sum(count for _, count in parts)),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class PolicyResults:
    """One policy on the same workload with several seeds."""

    policy: str
    results: tuple[LiveResult, ...]

    @property
    def scheduling(self) -> str:
        """The name by which configuration chooses the policy."""
        return self.results[0].run.variant.scheduler.policy

    def live(self) -> Total:
        """What happened."""
        return _total([result.live for result in self.results])

    def foretold(self) -> "ForetoldResults | None":
        """Those of its runs that the simulator repeats, if there are any."""
        pairs = tuple((result, result.foretold) for result in self.results if result.foretold is not None)
        return ForetoldResults(self.policy, pairs) if pairs else None

    def idle_share(self) -> float:
        """Of idle time between segments; mean over the traces."""
        return statistics.fmean(idle_share(result.idle) for result in self.results)

    def idlest(self) -> LiveResult:
        """The run in which a single request had the largest share of idle time between its segments."""
        return max(self.results, key=lambda result: result.most_idle.share)

    def lead_points(self, other: "PolicyResults") -> str:
        """Mean of own SLO attainment minus the other's, trace by trace, in percentage points.

        With its standard error where there are several traces.
        """
        theirs = {result.run.cell: result.live.slo_attainment for result in other.results}
        gains = [
            100 * (result.live.slo_attainment - theirs[result.run.cell])
            for result in self.results
            if result.run.cell in theirs
        ]
        if not gains:
            return "no trace in common"
        error = f" ± {statistics.stdev(gains) / math.sqrt(len(gains)):.1f}" if len(gains) > 1 else ""
        return f"{statistics.fmean(gains):+.1f}{error}"


@dataclass(frozen=True, slots=True)
class ForetoldResults:
    """Live runs of one policy on the same workload, each with what was predicted of it."""

    policy: str
    pairs: tuple[tuple[LiveResult, Foretold], ...]

    def live(self) -> Total:
        """What happened."""
        return _total([result.live for result, _ in self.pairs])

    def expected(self) -> tuple[Expected, Expected]:
        """What was predicted by table and at pace, and how far the draws lie apart."""
        foretold = [one for _, one in self.pairs]
        return _expected([one.by_table for one in foretold]), _expected([one.at_pace for one in foretold])

    def images(self) -> float:
        """Share of requests whose image file was there in time."""
        return self._share(result.images_on_time for result, _ in self.pairs)

    def images_by_table(self) -> float:
        """What was predicted of that by table."""
        return self._share(one.by_table.images_on_time for _, one in self.pairs)

    def images_at_pace(self) -> float:
        """What was predicted of that at pace."""
        return self._share(one.at_pace.images_on_time for _, one in self.pairs)

    def _share(self, counts: Iterable[float]) -> float:
        return sum(counts) / max(1, sum(result.live.requests for result, _ in self.pairs))

    def idle_share(self) -> float:
        """Of idle time between segments at pace; mean over the traces."""
        return statistics.fmean(idle_share(one.idle) for _, one in self.pairs)


def _expected(predictions: Sequence[Prediction]) -> Expected:
    totals = [_total(draw) for draw in zip(*(prediction.draws for prediction in predictions), strict=True)]
    attained, latency_s = [total.attained for total in totals], [total.mean_latency_s for total in totals]
    return Expected(
        Total(statistics.fmean(attained), statistics.fmean(latency_s)),
        Total(_deviation(attained), _deviation(latency_s)),
    )
