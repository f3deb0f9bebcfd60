"""The gist of a live benchmark: leads, the worst predictions, and what ranks gain together."""

from collections.abc import Iterator, Mapping, Sequence

from tetriserve_backend.cli.bench.totals import PolicyResults
from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.latency_table import LatencyTable

_NOT_STATIC = frozenset({"tetris", "tetriserve"})
"""Policies that change the degree of a request while it runs."""


def short_account(
    workload: str, groups: Sequence[PolicyResults], table: LatencyTable, expect_speed_up: float | None
) -> Sheet:
    """A few figures of one workload.

    Args:
        workload: in words.
        groups: the policies; the first one is compared with the others.
        table: what their servers planned with, as far as their ranks could run it.
        expect_speed_up: of the largest resolution, from one rank to the fastest degree; None expects nothing.
    """
    static = [group for group in groups if group.scheduling not in _NOT_STATIC]
    others = [group for group in groups[1:] if group not in static]
    best = [max(static, key=lambda group: group.live().attained)] if static else []
    rows = [
        *(_lead(groups[0], group, "the best static policy, ") for group in best if group is not groups[0]),
        *(_lead(groups[0], group, "") for group in others),
        *_furthest_predicted(groups),
        *_longest_idle(groups),
        _speed_ups(table),
    ]
    notes = tuple(_disappointments(table, expect_speed_up))
    return Sheet(f"in short: {workload}", ("what", "figure"), tuple(rows), notes)


def _lead(first: PolicyResults, other: PolicyResults, what: str) -> tuple[str, str]:
    whom = f"{what}{other.policy}, which met {other.live().attained:.1%}"
    return f"lead of {first.policy} over {whom}", f"{first.lead_points(other)} points"


def _furthest_predicted(groups: Sequence[PolicyResults]) -> list[tuple[str, str]]:
    points: dict[str, float] = {}
    image_points: dict[str, float] = {}
    shares: dict[str, float] = {}
    for group in (foretold for one in groups if (foretold := one.foretold()) is not None):
        live, (by_table, _) = group.live(), group.expected()
        points[group.policy] = 100 * (by_table.mean.attained - live.attained)
        image_points[group.policy] = 100 * (group.images_by_table() - group.images())
        if live.mean_latency_s:
            shares[group.policy] = by_table.mean.mean_latency_s / live.mean_latency_s - 1
    rows: list[tuple[str, str]] = []
    if not points:
        return rows
    for what, off in (("SLO met", points), ("SLO met with image file", image_points)):
        worst = _furthest(off)
        rows.append((f"{what}, furthest predicted by table", f"{worst}, {off[worst]:+.1f} points"))
    if shares:
        worst = _furthest(shares)
        rows.append(("mean latency, furthest predicted by table", f"{worst}, {shares[worst]:+.1%}"))
    return rows


def _furthest(off: Mapping[str, float]) -> str:
    return max(off, key=lambda name: abs(off[name]))


def _longest_idle(groups: Sequence[PolicyResults]) -> Iterator[tuple[str, str]]:
    worst = max(groups, key=lambda group: group.idle_share())
    yield "most idle between segments of a request on unchanged ranks", f"{worst.policy}, {worst.idle_share():.2%}"
    result = max((group.idlest() for group in groups), key=lambda result: result.most_idle.share)
    one = result.most_idle
    if one.work_s:
        figure = f"{result.run.name} {one.request_id}, {one.share:.2%} of {one.work_s:.2f} s"
        yield "most of it for a single request", figure


def _disappointments(table: LatencyTable, expect_speed_up: float | None) -> Iterator[str]:
    height, width = table.resolutions[-1]
    found = table.speed_up(height, width)
    if expect_speed_up is not None and found < expect_speed_up:
        yield (
            f"Ranks gained less together than was expected: {found:.2f} times as fast at {height}x{width}, expected"
            f" {expect_speed_up:g} (expect_speed_up). Wide degrees were of little use to any policy here."
        )


def _speed_ups(table: LatencyTable) -> tuple[str, str]:
    gains = (f"{height}x{width} {table.speed_up(height, width):.2f}" for height, width in table.resolutions)
    return f"times as fast as one rank: a step at its fastest degree, of {table.world_size} ranks", ", ".join(gains)
