"""Which figures a report has, in order."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tetriserve_backend.cli.reporting.page import Picture
from tetriserve_backend.cli.reporting.summary_figures import (
    AGAINST_RATE,
    AGAINST_SLO_SCALE,
    draw_attainment,
    draw_latency_cdf,
    draw_resolutions,
)
from tetriserve_backend.cli.reporting.timeline_figures import draw_gantt, draw_over_time
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.simulator.summary import Summary


def best_first(summaries: Sequence[Summary]) -> list[Summary]:
    """By policy, the one that serves most in time first; so tables, legends and colours have one order."""
    on_time: dict[str, int] = {}
    for summary in summaries:
        on_time[summary.policy] = on_time.get(summary.policy, 0) + summary.on_time
    return sorted(summaries, key=lambda summary: (-on_time[summary.policy], summary.policy))


def summary_pictures(summaries: Sequence[Summary], out: Path) -> Iterator[Picture]:
    """The figures that these summaries have something to say in, drawn into `out`."""
    if not summaries:
        return
    caption = "Share of all requests that finished by their deadline; means over seeds."
    for against, heading in (
        (AGAINST_SLO_SCALE, "SLO attainment against SLO scale"),
        (AGAINST_RATE, "SLO attainment against rate"),
    ):
        path = draw_attainment(summaries, against, out)
        if path is not None:
            yield Picture(path, heading, caption)
    yield Picture(
        draw_resolutions(summaries, out), "SLO attainment by resolution", "Over all runs of a mix; height × width."
    )
    yield Picture(
        draw_latency_cdf(summaries, out),
        "Latency",
        "Share of finished requests that took at most so long, over all runs.",
    )


def timeline_pictures(views: Mapping[str, TimelineView], out: Path) -> Iterator[Picture]:
    """The figures of these timelines, by name, drawn into `out`."""
    if not views:
        return
    caption = "Mean degree of the denoising that runs, share of the GPUs at work, and attainment by time of arrival."
    yield Picture(draw_over_time(views, out), "Over time", caption)
    for name, view in views.items():
        caption = "Above, each request from arrival to end with its deadline; below, what each GPU did."
        yield Picture(draw_gantt(name, view, out), f"Schedule: {name}", caption)
