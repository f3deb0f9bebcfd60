"""Words and tables for what a server did with requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.table import Table

from tetriserve_client import GenerateResult, ImageRequest, SegmentReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended: with a result, or with `error` as a sentence."""

    name: str
    transport: str
    request: ImageRequest
    result: GenerateResult | None
    error: str = ""

    @property
    def on_time(self) -> bool:
        """Whether an image came before its deadline."""
        return self.result is not None and self.result.deadline_met


def describe_degrees(segments: Sequence[SegmentReport]) -> str:
    """The degree of each denoise segment in order, such as `1 1 2×3 1+1`.

    That is three in a row at sequence-parallel degree 2, then one with a rank for each pass of the guidance.
    """
    degrees = [
        "+".join([str(segment.sp_degree)] * segment.cfg_degree) for segment in segments if segment.kind == "denoise"
    ]
    runs = [(degree, len(list(run))) for degree, run in groupby(degrees)]
    return " ".join(degree if count == 1 else f"{degree}×{count}" for degree, count in runs)


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per request: resolution, SLO, latency, whether the deadline was met, degrees."""
    on_time = sum(outcome.on_time for outcome in outcomes)
    table = Table(title=f"{len(outcomes)} requests, {on_time} on time ({on_time / max(1, len(outcomes)):.0%})")
    for heading in ("request", "by", "resolution"):
        table.add_column(heading, no_wrap=True)
    for heading in ("steps", "SLO s", "latency s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met?", no_wrap=True)
    table.add_column("degree of each segment")
    for outcome in outcomes:
        table.add_row(*_row(outcome))
    return table


def _row(outcome: Outcome) -> tuple[str, ...]:
    request, result = outcome.request, outcome.result
    asked = (outcome.name, outcome.transport, str(request.size), str(request.steps), f"{request.slo_s or 0.0:.2f}")
    if result is None:
        return (*asked, "–", "[red]error[/red]", outcome.error)
    met = "[green]yes[/green]" if result.deadline_met else "[red]late[/red]"
    return (*asked, f"{float(result.metadata['total_s']):.2f}", met, describe_degrees(result.segments))
