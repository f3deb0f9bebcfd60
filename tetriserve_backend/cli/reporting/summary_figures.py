"""Figures of summaries: SLO attainment against SLO scale and rate, by resolution, and latencies."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tetriserve_backend.cli.reporting.style import BOUND_LABEL, BOUND_STYLE, legend_below, looks, new_figure, save, tidy
from tetriserve_backend.domain import image_tokens
from tetriserve_backend.simulator.summary import Summary

_PANEL_WIDTH_IN, _PANEL_HEIGHT_IN = 4.0, 3.2
_MAX_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Against:
    """A figure of SLO attainment against one label, a panel for each value of the other one.

    Attributes:
        name: of the file.
        axis: label along the horizontal axis.
        panel: label that tells the panels of one mix apart.
        title: of the axis.
        describe_panel: its value in words.
    """

    name: str
    axis: str
    panel: str
    title: str
    describe_panel: Callable[[Any], str]


AGAINST_SLO_SCALE = Against(
    "slo_scale", "slo_scale", "rate_per_minute", "SLO scale", lambda rate: f"{rate:g} requests/min"
)
AGAINST_RATE = Against(
    "rate", "rate_per_minute", "slo_scale", "requests per minute", lambda scale: f"SLO scale {scale:g}"
)


def draw_attainment(summaries: Sequence[Summary], against: Against, folder: Path) -> Path | None:
    """SLO attainment against SLO scale or rate, beside the bound; None unless a panel has two points to join."""
    known = [s for s in summaries if s.labels.get(against.axis) is not None]
    panels = _group(known, lambda s: (str(s.labels.get("mix", "")), s.labels.get(against.panel)))
    panels = {key: rows for key, rows in panels.items() if len({s.labels[against.axis] for s in rows}) > 1}
    if not panels:
        return None
    figure, grid = _panels(len(panels), sharey=True)
    look = looks(s.policy for s in summaries)
    for axes, (mix, value), rows in zip(grid, panels, panels.values(), strict=False):
        for policy, own in _group(rows, lambda s: s.policy).items():
            points = _means(own, lambda s: float(s.labels[against.axis]), lambda s: s.slo_attainment)
            axes.plot(*points, label=policy, color=look[policy].color, marker=look[policy].marker, markersize=5)
        bounds = [s for s in rows if s.bound is not None]
        if bounds:
            points = _means(bounds, lambda s: float(s.labels[against.axis]), lambda s: float(s.bound or 0.0))
            axes.plot(*points, label=BOUND_LABEL, **BOUND_STYLE)
        axes.set_title(_join(mix, "" if value is None else against.describe_panel(value)), fontsize=10)
        axes.set_xticks(sorted({float(s.labels[against.axis]) for s in rows}))
        axes.set_xlabel(against.title)
        axes.set_ylim(0.0, 1.03)
        tidy(axes)
    _label_left(grid, "SLO attainment")
    legend_below(figure, grid[0])
    return save(figure, folder / f"slo_attainment_by_{against.name}.png")


def draw_latency_cdf(summaries: Sequence[Summary], folder: Path) -> Path:
    """The share of finished requests that took at most so long, one panel per mix, over all its traces."""
    panels = _group(summaries, lambda s: str(s.labels.get("mix", "")))
    figure, grid = _panels(len(panels), sharey=True)
    look = looks(s.policy for s in summaries)
    for axes, (mix, rows) in zip(grid, panels.items(), strict=False):
        longest_s = max((s.latency_cdf_s[-1] for s in rows), default=1.0) or 1.0
        shortest_s = min((s.latency_cdf_s[0] for s in rows if s.latency_s["count"]), default=0.1) or 0.1
        grid_s = np.geomspace(0.8 * shortest_s, 1.1 * max(longest_s, shortest_s), 300).tolist()
        for policy, own in _group(rows, lambda s: s.policy).items():
            axes.plot(grid_s, [_share_within(own, x) for x in grid_s], label=policy, color=look[policy].color)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(mix or "all requests", fontsize=10)
        axes.set_xlabel("latency in seconds (log scale)")
        axes.set_ylim(0.0, 1.03)
        tidy(axes)
    _label_left(grid, "share of requests")
    legend_below(figure, grid[0])
    return save(figure, folder / "latency_cdf.png")


def draw_resolutions(summaries: Sequence[Summary], folder: Path) -> Path:
    """SLO attainment by resolution, one panel per mix, over all its traces."""
    panels = _group(summaries, lambda s: str(s.labels.get("mix", "")))
    policies = list(dict.fromkeys(s.policy for s in summaries))
    figure, grid = _panels(len(panels), sharey=True, width_in=max(_PANEL_WIDTH_IN, 1.2 + 0.75 * len(policies)))
    look = looks(policies)
    width = 0.8 / len(policies)
    for axes, (mix, rows) in zip(grid, panels.items(), strict=False):
        shapes = sorted({shape for s in rows for shape in s.by_resolution}, key=_tokens_of)
        for index, policy in enumerate(policies):
            heights = [_attainment(s for s in rows if s.policy == policy)(shape) for shape in shapes]
            offsets = [position - 0.4 + (index + 0.5) * width for position in range(len(shapes))]
            axes.bar(offsets, heights, width=0.92 * width, label=policy, color=look[policy].color)
        axes.set_xticks(range(len(shapes)), shapes)
        axes.set_title(mix or "all requests", fontsize=10)
        axes.set_ylim(0.0, 1.03)
        tidy(axes)
        axes.grid(visible=False, axis="x")
    _label_left(grid, "SLO attainment")
    legend_below(figure, grid[0])
    return save(figure, folder / "slo_attainment_by_resolution.png")


def _panels(count: int, *, sharey: bool, width_in: float = _PANEL_WIDTH_IN) -> tuple[Figure, list[Axes]]:
    columns = min(count, _MAX_COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(width_in * columns + 0.4, _PANEL_HEIGHT_IN * rows + 0.6)
    grid = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def _label_left(grid: Sequence[Axes], text: str) -> None:
    for axes in grid[::_MAX_COLUMNS]:
        axes.set_ylabel(text)


def _group(summaries: Iterable[Summary], key: Callable[[Summary], Any]) -> dict[Any, list[Summary]]:
    groups: dict[Any, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(key(summary), []).append(summary)
    return groups


def _means(
    summaries: Sequence[Summary], x: Callable[[Summary], float], y: Callable[[Summary], float]
) -> tuple[list[float], list[float]]:
    """Ascending x, and the mean of y over the summaries (seeds) at each."""
    groups = _group(summaries, x)
    positions = sorted(groups)
    return positions, [sum(y(s) for s in groups[p]) / len(groups[p]) for p in positions]


def _share_within(summaries: Sequence[Summary], latency_s: float) -> float:
    """Share of the finished requests of several runs that took at most `latency_s`."""
    finished = sum(s.latency_s["count"] for s in summaries)
    within = sum(
        s.latency_s["count"] * bisect_right(s.latency_cdf_s, latency_s) / len(s.latency_cdf_s) for s in summaries
    )
    return within / finished if finished else 0.0


def _attainment(summaries: Iterable[Summary]) -> Callable[[str], float]:
    listed = list(summaries)

    def of(shape: str) -> float:
        parts = [s.by_resolution[shape] for s in listed if shape in s.by_resolution]
        return sum(part.on_time for part in parts) / max(1, sum(part.requests for part in parts))

    return of


def _tokens_of(shape: str) -> int:
    height, _, width = shape.partition("x")
    return image_tokens(int(height), int(width))


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
