"""A timeline as a picture: GPU × time, colour by request, deadlines marked."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from tetriserve_backend.cli.timeline_view import RequestSpan, TimelineView, WorkSpan

_GOLDEN_RATIO = 0.618034
_HATCH = {"encode": "....", "denoise": "", "decode": "////"}
_ON_TIME, _LATE, _UNFINISHED = "#1a7f37", "#cf222e", "#6e7781"
_BAR_HEIGHT = 0.86
_LABEL_BOX = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
_LABEL_WIDTH_FRACTION = 0.018
"""A run narrower than this part of the whole time has no room for its request's name."""


@dataclass(frozen=True, slots=True)
class _Colors:
    """One colour per request, neighbours well apart."""

    names: tuple[str, ...]

    def of(self, name: str) -> tuple[float, float, float]:
        index = self.names.index(name)
        return colorsys.hls_to_rgb((index * _GOLDEN_RATIO) % 1.0, 0.62 if index % 2 else 0.5, 0.65)


def draw_schedule(view: TimelineView, path: Path, *, title: str, window_s: tuple[float, float] | None = None) -> None:
    """Write a PNG of the schedule: above each request from arrival to end, below each GPU's work.

    Args:
        view: what to draw.
        path: of the PNG.
        title: in words.
        window_s: from when to when; None shows everything.

    Raises:
        OSError: `path` cannot be written.
    """
    rows, gpus = len(view.requests), len(view.gpus)
    figure = Figure(figsize=(14, 2.2 + 0.27 * rows + 0.75 * gpus), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(
        2, 1, sharex=True, height_ratios=(max(1.0, 0.27 * rows), max(0.8, 0.75 * gpus)), squeeze=True
    )
    colors = _Colors(tuple(request.request_id for request in view.requests))
    _draw_requests(upper, view.requests, colors)
    begin_s, end_s = window_s or (view.start_s, view.end_s)
    _draw_gpus(lower, view, colors, (begin_s, end_s))
    margin_s = 0.02 * (end_s - begin_s) or 1.0
    lower.set_xlim(begin_s - margin_s, end_s + margin_s)
    lower.set_xlabel("seconds since the timeline began")
    figure.suptitle(title, fontsize=12)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_requests(axes: Axes, requests: Sequence[RequestSpan], colors: _Colors) -> None:
    for row, request in enumerate(requests):
        color = colors.of(request.request_id)
        end_s = request.end_s if request.end_s is not None else request.arrival_s
        axes.barh(row, end_s - request.arrival_s, left=request.arrival_s, height=0.55, color=color)
        axes.plot([request.arrival_s, request.deadline_s], [row, row], color=color, linewidth=0.8, linestyle=":")
        axes.plot(request.deadline_s, row, marker="D", markersize=5, color="black")
        outcome = _UNFINISHED if request.end_s is None else _ON_TIME if request.on_time else _LATE
        axes.plot(end_s, row, marker="o", markersize=6, color=outcome, markeredgecolor="white")
    tells_model = len({request.model for request in requests}) > 1
    axes.set_yticks(range(len(requests)), [_request_label(request, tells_model) for request in requests], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _request_label(request: RequestSpan, tells_model: bool) -> str:
    name = f"{request.request_id}  {request.model}" if tells_model else request.request_id
    return f"{name}  {request.width}×{request.height}, {request.num_steps} steps"


def _draw_gpus(axes: Axes, view: TimelineView, colors: _Colors, window_s: tuple[float, float]) -> None:
    for span in view.work:
        _draw_work(axes, span, colors)
    begin_s, end_s = window_s
    _label_runs(axes, view, end_s - begin_s)
    for request in view.requests:
        if not begin_s <= request.deadline_s <= end_s:
            continue
        axes.axvline(request.deadline_s, color=colors.of(request.request_id), linewidth=1.0, linestyle="--", alpha=0.8)
        axes.plot(
            request.deadline_s,
            1.0,
            marker="v",
            markersize=6,
            color=colors.of(request.request_id),
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    axes.set_yticks(view.gpus, [f"GPU {rank}" for rank in view.gpus])
    axes.set_ylim(max(view.gpus, default=0) + 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _draw_work(axes: Axes, span: WorkSpan, colors: _Colors) -> None:
    """A batch is cut into one strip per request."""
    height = _BAR_HEIGHT / len(span.request_ids)
    for index, name in enumerate(span.request_ids):
        axes.add_patch(
            Rectangle(
                (span.start_s, span.gpu - _BAR_HEIGHT / 2 + index * height),
                span.duration_s,
                height,
                facecolor=colors.of(name),
                hatch=_HATCH.get(span.kind, ""),
                edgecolor="white",
                linewidth=0.6,
            )
        )


def _label_runs(axes: Axes, view: TimelineView, shown_s: float) -> None:
    """Name and degree of each run of segments that one batch has on one GPU, where there is room for it."""
    for gpu in view.gpus:
        spans = sorted((span for span in view.work if span.gpu == gpu), key=lambda span: span.start_s)
        for (names, degree), group in groupby(spans, key=lambda span: (span.request_ids, span.sp_degree)):
            run = list(group)
            start_s, end_s = run[0].start_s, run[-1].start_s + run[-1].duration_s
            if end_s - start_s > _LABEL_WIDTH_FRACTION * shown_s:
                text = "\n".join([*names, f"×{degree}"])
                middle_s = (start_s + end_s) / 2
                axes.text(middle_s, gpu, text, ha="center", va="center", fontsize=7, bbox=_LABEL_BOX, clip_on=True)


def _legend() -> list[Patch | Line2D]:
    def point(marker: str, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=color, label=label)

    work = [Patch(facecolor="#888888", edgecolor="white", hatch=hatch, label=kind) for kind, hatch in _HATCH.items()]
    return [
        *work,
        point("D", "black", "deadline"),
        point("v", "#888888", "deadline (in its request's colour)"),
        Patch(facecolor="none", edgecolor="none", label="×2: two GPUs share the step"),
        point("o", _ON_TIME, "done in time"),
        point("o", _LATE, "late or failed"),
    ]
