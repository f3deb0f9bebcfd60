"""Figures of timelines: degree, use of the GPUs and SLO attainment over time, and who ran where."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tetriserve_backend.cli.drawing import draw_schedule
from tetriserve_backend.cli.reporting.style import legend_below, looks, new_figure, save, tidy
from tetriserve_backend.cli.timeline_view import RequestSpan, TimelineView, WorkSpan

_BINS = 80
_EXCERPT_REQUESTS = 24


def draw_over_time(views: Mapping[str, TimelineView], folder: Path) -> Path:
    """Mean degree of denoising, share of GPUs busy and SLO attainment by arrival, along each timeline."""
    figure = new_figure(11, 7.2)
    degree, busy, attained = figure.subplots(3, 1, sharex=True)
    end_s = max((view.end_s for view in views.values()), default=1.0) or 1.0
    edges = np.linspace(0.0, end_s, _BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    look = looks(views)
    for name, view in views.items():
        color = look[name].color
        denoise = [span for span in view.work if span.kind == "denoise"]
        gpu_s = _busy_seconds(denoise, edges)
        request_s = _busy_seconds(denoise, edges, weigh=lambda span: 1 / span.sp_degree)
        shown = request_s > 0
        degree.plot(middles[shown], gpu_s[shown] / request_s[shown], color=color, label=name, drawstyle="steps-mid")
        # Where nothing ran, no GPU was busy.
        capacity_s = max(1, len(view.gpus)) * np.diff(edges)
        busy.plot(middles, _busy_seconds(view.work, edges) / capacity_s, color=color, drawstyle="steps-mid")
        positions, shares = _attainment(view.requests, edges)
        attained.plot(positions, shares, color=color, drawstyle="steps-mid")
    degree.set_ylabel("mean degree")
    degree.set_ylim(bottom=0)
    busy.set_ylabel("GPUs busy")
    attained.set_ylabel("SLO attainment\nby arrival")
    attained.set_xlabel("seconds since the timeline began")
    for axes in (busy, attained):
        axes.set_ylim(0.0, 1.03)
    for axes in (degree, busy, attained):
        tidy(axes)
    legend_below(figure, degree)
    return save(figure, folder / "over_time.png")


def draw_gantt(name: str, view: TimelineView, folder: Path) -> Path:
    """The schedule around the densest run of arrivals."""
    path = folder / f"schedule_{name}.png"
    window_s = densest_window_s(view, _EXCERPT_REQUESTS)
    title = name if window_s is None else f"{name}, where requests come fastest"
    draw_schedule(view if window_s is None else excerpt(view, *window_s), path, title=title, window_s=window_s)
    return path


def densest_window_s(view: TimelineView, count: int) -> tuple[float, float] | None:
    """From the first arrival to the last deadline of the `count` requests that come fastest; None if all fit."""
    if len(view.requests) <= count:
        return None
    arrivals = [request.arrival_s for request in view.requests]
    first = min(range(len(arrivals) - count + 1), key=lambda index: arrivals[index + count - 1] - arrivals[index])
    chosen = view.requests[first : first + count]
    return chosen[0].arrival_s, max(request.deadline_s for request in chosen)


def excerpt(view: TimelineView, begin_s: float, end_s: float) -> TimelineView:
    """What happens between two times: the work, and the requests that arrive or are worked on."""
    work = tuple(span for span in view.work if span.start_s < end_s and span.start_s + span.duration_s > begin_s)
    present = {name for span in work for name in span.request_ids}
    present |= {request.request_id for request in view.requests if begin_s <= request.arrival_s <= end_s}
    return TimelineView(work, tuple(request for request in view.requests if request.request_id in present))


def _busy_seconds(
    spans: Sequence[WorkSpan],
    edges: npt.NDArray[np.float64],
    weigh: Callable[[WorkSpan], float] = lambda span: 1.0,
) -> npt.NDArray[np.float64]:
    """Seconds of work in each bin, summed over GPUs."""
    if not spans:
        return np.zeros(len(edges) - 1)
    starts = np.array([span.start_s for span in spans])
    durations = np.array([span.duration_s for span in spans])
    weights = np.array([weigh(span) for span in spans])
    # Work done up to each edge; bins hold the differences.
    done = np.array([float(np.sum(weights * np.clip(edge - starts, 0.0, durations))) for edge in edges])
    return np.diff(done)


def _attainment(
    requests: Sequence[RequestSpan], edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Share on time of the requests that arrive in each stretch of four bins."""
    coarse = edges[::4]
    arrivals = np.array([request.arrival_s for request in requests])
    on_time = np.array([request.on_time for request in requests], dtype=float)
    counts, _ = np.histogram(arrivals, coarse)
    sums, _ = np.histogram(arrivals, coarse, weights=on_time)
    shown = counts > 0
    return ((coarse[1:] + coarse[:-1]) / 2)[shown], sums[shown] / counts[shown]
