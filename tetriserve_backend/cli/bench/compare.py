"""What a live benchmark comes to, as tables: policies beside each other, and beside what the simulator expected."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.bench.predicted import Prediction
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.simulator.summary import Summary

_USUAL_PACE = 0.03
"""By how much the pace of a run may differ from 1 before a note says so."""


@dataclass(frozen=True, slots=True)
class LiveResult:
    """One live run beside its predictions.

    Attributes:
        live: what happened.
        images_on_time: requests whose image file was there by the deadline.
        errors: why clients got no image, request by request.
        by_table: predicted from the measured latency tables.
        at_pace: predicted from these and how fast the ranks were during the run.
        pace: seconds of work over what the table says.
        idle_share: see `overhead.gaps.idle_share`.
        simulated_idle_share: the same at pace: what of it the policy wanted.
        problems: what is wrong with its timeline.
    """

    run: BenchRun
    live: Summary
    images_on_time: int
    errors: tuple[str, ...]
    by_table: Prediction
    at_pace: Prediction
    pace: float
    idle_share: float
    simulated_idle_share: float
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Total:
    """SLO attainment over all requests, and mean latency over those that finished."""

    attained: float
    mean_latency_s: float


@dataclass(frozen=True, slots=True)
class _Expected:
    """The mean of several simulations, and their standard deviation."""

    mean: _Total
    deviation: _Total


def _total(summaries: Sequence[Summary]) -> _Total:
    parts = [(summary.latency_s["mean"], summary.latency_s["count"]) for summary in summaries]
    return _Total(
        sum(s.on_time for s in summaries) / max(1, sum(s.requests for s in summaries)),
        sum(mean * count for mean, count in parts) / max(1, sum(count for _, count in parts)),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class _Group:
    """One policy on the same workload with several seeds."""

    policy: str
    results: tuple[LiveResult, ...]

    def live(self) -> "_Total":
        """What happened."""
        return _total([result.live for result in self.results])

    def _predicted(self, of: Callable[[LiveResult], Prediction]) -> "_Expected":
        """What was predicted, and how far the draws lie apart."""
        totals = [_total(draw) for draw in zip(*(of(result).draws for result in self.results), strict=True)]
        attained, latency_s = [total.attained for total in totals], [total.mean_latency_s for total in totals]
        return _Expected(
            _Total(statistics.fmean(attained), statistics.fmean(latency_s)),
            _Total(_deviation(attained), _deviation(latency_s)),
        )

    def expected(self) -> "tuple[_Expected, _Expected]":
        """What was predicted by table and at pace."""
        return self._predicted(lambda result: result.by_table), self._predicted(lambda result: result.at_pace)

    def images(self, count: Callable[[LiveResult], float]) -> float:
        """Share of requests whose image file was there in time."""
        return sum(map(count, self.results)) / max(1, sum(result.live.requests for result in self.results))

    def lead_points(self, other: "_Group") -> tuple[float, float]:
        """Mean of own SLO attainment minus the other's, trace by trace, and its standard error; percentage points."""
        theirs = {result.run.cell: result.live.slo_attainment for result in other.results}
        gains = [
            100 * (result.live.slo_attainment - theirs[result.run.cell])
            for result in self.results
            if result.run.cell in theirs
        ]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        return (statistics.fmean(gains) if gains else math.nan), error


def live_sheets(results: Sequence[LiveResult]) -> list[Sheet]:
    """For each workload of the grid: what the policies did, and how well it was predicted."""
    workloads: dict[str, dict[str, list[LiveResult]]] = {}
    for result in results:
        policies = workloads.setdefault(_describe(result.run), {})
        policies.setdefault(result.run.variant.name, []).append(result)
    sheets = []
    for workload, policies in workloads.items():
        groups = [_Group(name, tuple(own)) for name, own in policies.items()]
        sheets += [
            _served_sheet(workload, groups),
            _attainment_sheet(workload, groups),
            _latency_sheet(workload, groups),
        ]
    return sheets


def _describe(run: BenchRun) -> str:
    labels, scales = run.workload.labels(), "/".join(f"{scale:g}" for scale in run.workload.slo_scales)
    return f"mix {labels['mix']}, SLO scale {scales}, {run.workload.rate_per_minute:g} requests per minute"


def _served_sheet(workload: str, groups: Sequence[_Group]) -> Sheet:
    first = groups[0]
    rows = []
    for group in groups:
        lead, error = first.lead_points(group)
        problems = sum(len(result.problems) for result in group.results)
        rows.append(
            (
                group.policy,
                f"{group.live().attained:.1%}",
                " ".join(f"{result.live.slo_attainment:.0%}" for result in group.results),
                "" if group is first else f"{lead:+.1f} ± {error:.1f}",
                f"{group.images(lambda result: result.images_on_time):.1%}",
                f"{group.live().mean_latency_s:.3f}",
                f"{statistics.fmean(result.live.gpu_utilization for result in group.results):.0%}",
                f"{statistics.fmean(result.pace for result in group.results):.2f}",
                f"{statistics.fmean(result.idle_share for result in group.results):.2%}",
                f"{statistics.fmean(result.simulated_idle_share for result in group.results):.2%}",
                "good" if not problems else f"{problems} problems",
            )
        )
    headings = (
        "policy",
        "SLO met",
        "by seed",
        f"lead of {first.policy}, points",
        "with image file",
        "mean latency s",
        "ranks busy",
        "pace",
        "idle between segments",
        "of it by plan",
        "timeline",
    )
    notes = (
        "The lead is the mean over the traces with its standard error. Pace: seconds of work over what the latency"
        " table says; 1 is as fast as when it was measured.",
        "Idle between segments: time in which ranks do nothing between two segments of a request that stays on them,"
        " over the time of all segments; by plan: as much of it as the simulator has at the same pace, where nothing"
        " but the policy makes ranks wait.",
        *(note for group in groups for result in group.results for note in _notes(result)),
    )
    return Sheet(f"live: {workload}", headings, tuple(rows), notes)


def _notes(result: LiveResult) -> Iterator[str]:
    """What one should know of a run before one believes it."""
    if abs(result.pace - 1) > _USUAL_PACE:
        yield f"{result.run.name}: its ranks were not as fast as when the table was measured, pace {result.pace:.2f}."
    if result.errors:
        yield f"{result.run.name}: {len(result.errors)} requests got no image, the first since: {result.errors[0]}"


def _attainment_sheet(workload: str, groups: Sequence[_Group]) -> Sheet:
    rows = []
    for group in groups:
        live = group.live()
        images = group.images(lambda r: r.images_on_time), group.images(lambda r: r.at_pace.images_on_time)
        rows.append(
            (
                group.policy,
                f"{live.attained:.1%}",
                *(cell for expected in group.expected() for cell in _attained_cells(live, expected)),
                *(f"{share:.1%}" for share in images),
            )
        )
    headings = (
        "policy",
        "SLO met: live",
        *("by table", "off by, points", "at pace", "off by, points"),
        *("with image file: live", "at pace"),
    )
    notes = (
        "By table: the simulator with the measured latency table, the mean of them where there are several, and as much"
        " variation from step to step as was found, 1 % at least. At pace: also with how fast each rank was, quarter"
        " second by quarter second, while this policy ran, which no table can know of a machine that others use too."
        " Each is the mean of several simulations, with their standard deviation: a live run is one draw.",
    )
    return Sheet(f"live and simulated, SLO met: {workload}", headings, tuple(rows), notes)


def _latency_sheet(workload: str, groups: Sequence[_Group]) -> Sheet:
    rows = []
    for group in groups:
        live = group.live()
        cells = (cell for expected in group.expected() for cell in _latency_cells(live, expected))
        rows.append((group.policy, f"{live.mean_latency_s:.3f}", *cells))
    headings = ("policy", "mean latency s: live", "by table", "off by", "at pace", "off by")
    return Sheet(f"live and simulated, mean latency: {workload}", headings, tuple(rows))


def _attained_cells(live: _Total, expected: _Expected) -> tuple[str, str]:
    mean, deviation = expected.mean.attained, expected.deviation.attained
    return f"{mean:.1%} ± {100 * deviation:.1f}", f"{100 * (mean - live.attained):+.1f}"


def _latency_cells(live: _Total, expected: _Expected) -> tuple[str, str]:
    mean_s, deviation_s = expected.mean.mean_latency_s, expected.deviation.mean_latency_s
    off = f"{mean_s / live.mean_latency_s - 1:+.1%}" if live.mean_latency_s else ""
    return f"{mean_s:.3f} ± {deviation_s:.3f}", off
