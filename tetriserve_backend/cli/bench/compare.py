"""What a live benchmark comes to, as tables: policies beside each other, and beside what the simulator expected."""

import statistics
from collections.abc import Iterator, Sequence

from tetriserve_backend.cli.bench.ranks import on_ranks
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.cli.bench.short_account import short_account
from tetriserve_backend.cli.bench.totals import Expected, ForetoldResults, LiveResult, PolicyResults, Total
from tetriserve_backend.cli.bench.verdict import told_briefly
from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.latency_table import LatencyTable

_USUAL_PACE = 0.03
"""By how much the pace of a run may differ from 1 before a note says so."""


def live_sheets(
    results: Sequence[LiveResult], table: LatencyTable, expect_speed_up: float | None = None
) -> list[Sheet]:
    """For each workload of the grid: what the policies did, how well it was predicted, and the gist of both.

    Args:
        results: of the runs that are done.
        table: what the servers planned with.
        expect_speed_up: see `BenchSpec`.
    """
    workloads: dict[str, dict[str, list[LiveResult]]] = {}
    for result in results:
        policies = workloads.setdefault(_describe(result.run), {})
        policies.setdefault(result.run.variant.name, []).append(result)
    sheets = []
    for workload, policies in workloads.items():
        groups = [PolicyResults(name, tuple(own)) for name, own in policies.items()]
        sheets += [
            _served_sheet(workload, groups),
            _attainment_sheet(workload, groups),
            _latency_sheet(workload, groups),
            short_account(workload, groups, on_ranks(table, results[0].live.gpus), expect_speed_up),
        ]
    return sheets


def _describe(run: BenchRun) -> str:
    labels, scales = run.workload.labels(), "/".join(f"{scale:g}" for scale in run.workload.slo_scales)
    return f"mix {labels['mix']}, SLO scale {scales}, {run.workload.rate_per_minute:g} requests per minute"


def _served_sheet(workload: str, groups: Sequence[PolicyResults]) -> Sheet:
    first = groups[0]
    rows = []
    for group in groups:
        problems = sum(len(result.problems) for result in group.results)
        rows.append(
            (
                group.policy,
                f"{group.live().attained:.1%}",
                " ".join(f"{result.live.slo_attainment:.0%}" for result in group.results),
                "" if group is first else first.lead_points(group),
                f"{group.live().mean_latency_s:.3f}",
                f"{statistics.fmean(result.live.gpu_utilization for result in group.results):.0%}",
                f"{statistics.fmean(result.pace for result in group.results):.2f}",
                f"{group.idle_share():.2%}",
                "" if (foretold := group.foretold()) is None else f"{foretold.idle_share():.2%}",
                f"{group.idlest().most_idle.share:.2%}",
                "good" if not problems else f"{problems} problems",
            )
        )
    headings = (
        "policy",
        "SLO met",
        "by seed",
        f"lead of {first.policy}, points",
        "mean latency s",
        "ranks busy",
        "pace",
        "idle between segments",
        "of it by plan",
        "most of a request",
        "timeline",
    )
    notes = (
        "The lead is the mean over the traces with its standard error. Pace: seconds of work over what the latency"
        " table says; 1 is as fast as when it was measured.",
        "Idle between segments: time in which ranks do nothing between two segments of a request that stays on them,"
        " over the time of all segments; by plan: as much of it as the simulator has at the same pace, where nothing"
        " but the policy makes ranks wait; most of a request: the largest such share of any single one, which is of"
        " little work where the image is small.",
        *(note for group in groups for result in group.results for note in _notes(result)),
    )
    return Sheet(f"live: {workload}", headings, tuple(rows), notes)


def _notes(result: LiveResult) -> Iterator[str]:
    """What one should know of a run before one believes it."""
    if abs(result.pace - 1) > _USUAL_PACE:
        yield f"{result.run.name}: its ranks were not as fast as when the table was measured, pace {result.pace:.2f}."
    if result.errors:
        yield f"{result.run.name}: {len(result.errors)} requests got no image, the first since: {result.errors[0]}"
    if result.problems:
        yield f"{result.run.name}: its timeline is wrong: {told_briefly(result.problems)}"


def _attainment_sheet(workload: str, groups: Sequence[PolicyResults]) -> Sheet:
    rows = []
    for group in _foretold(groups):
        live = group.live()
        rows.append(
            (
                group.policy,
                f"{live.attained:.1%}",
                *(cell for expected in group.expected() for cell in _attained_cells(live, expected)),
                *_image_cells(group),
            )
        )
    headings = (
        "policy",
        "SLO met: live",
        *("by table", "off by, points", "at pace", "off by, points"),
        *("with image file: live", "by table", "off by, points", "at pace"),
    )
    notes = (
        "By table: the simulator with the measured latency table, the mean of them where there are several, and as much"
        " variation from step to step as was found, 1 % at least. At pace: also with how fast each rank was, quarter"
        " second by quarter second, while this policy ran, which no table can know of a machine that others use too."
        " Each is the mean of several simulations, with their standard deviation: a live run is one draw.",
        "With image file: met by the file, as the server tells it to clients, rather than by the pixels. What comes"
        " behind the pixels is the mean of all live runs by resolution.",
        *_left_out(groups),
    )
    return Sheet(f"live and simulated, SLO met: {workload}", headings, tuple(rows), notes)


def _latency_sheet(workload: str, groups: Sequence[PolicyResults]) -> Sheet:
    rows = []
    for group in _foretold(groups):
        live = group.live()
        cells = (cell for expected in group.expected() for cell in _latency_cells(live, expected))
        rows.append((group.policy, f"{live.mean_latency_s:.3f}", *cells))
    headings = ("policy", "mean latency s: live", "by table", "off by", "at pace", "off by")
    return Sheet(f"live and simulated, mean latency: {workload}", headings, tuple(rows), tuple(_left_out(groups)))


def _foretold(groups: Sequence[PolicyResults]) -> list[ForetoldResults]:
    return [foretold for group in groups if (foretold := group.foretold()) is not None]


def _left_out(groups: Sequence[PolicyResults]) -> Iterator[str]:
    """The runs without a prediction, which are not in the live figures beside it either."""
    names = [result.run.name for group in groups for result in group.results if result.foretold is None]
    if names:
        yield f"Without runs whose timeline is wrong: {', '.join(names)}."


def _attained_cells(live: Total, expected: Expected) -> tuple[str, str]:
    mean, deviation = expected.mean.attained, expected.deviation.attained
    return f"{mean:.1%} ± {100 * deviation:.1f}", f"{100 * (mean - live.attained):+.1f}"


def _image_cells(group: ForetoldResults) -> tuple[str, ...]:
    live, by_table = group.images(), group.images_by_table()
    return f"{live:.1%}", f"{by_table:.1%}", f"{100 * (by_table - live):+.1f}", f"{group.images_at_pace():.1%}"


def _latency_cells(live: Total, expected: Expected) -> tuple[str, str]:
    mean_s, deviation_s = expected.mean.mean_latency_s, expected.deviation.mean_latency_s
    off = f"{mean_s / live.mean_latency_s - 1:+.1%}" if live.mean_latency_s else ""
    return f"{mean_s:.3f} ± {deviation_s:.3f}", off
