"""The clairvoyant upper bound: how many requests any policy could serve in time that knew the whole trace."""

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tetriserve_backend.domain import LatencyTableError, Request
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.simulator.bound.milp import RowWiseModel, maximise
from tetriserve_backend.simulator.bound.modes import FluidShape, fluid_shape

_ROUNDING = 1e-6
_INTERVALS_PER_WINDOW = 8
_BLOCK_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class BoundSettings:
    """How the bound is computed; every choice keeps it a bound.

    Attributes:
        batching: whether policies may batch. Without, the bound is lower and holds only for those that do not.
        time_limit_s: seconds for the whole trace. What is not solved by then counts with the best bound so far.
        gap: stop looking where the bound is this close to a schedule that was found, as a share of the requests.
        block_requests: longer busy periods are cut into blocks of at least this many requests, and several
            windows long, that do not compete with each other. A little looser, and linear in the trace.
        merge_s: intervals shorter than this are merged with their neighbours; larger is faster and looser.
            None merges none until windows hold more than eight, and then to about that number.
    """

    batching: bool = True
    time_limit_s: float = 60.0
    gap: float = 0.002
    block_requests: int = 400
    merge_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """No policy serves more than `on_time` of `requests` in time.

    Attributes:
        found: requests that the best fluid schedule found serves; near `on_time` when `optimal`.
        optimal: whether the relaxation was solved to the end, up to the gap allowed.
        solve_s: seconds that it took.
    """

    requests: int
    on_time: int
    found: int
    optimal: bool
    solve_s: float

    @property
    def slo_attainment(self) -> float:
        """`on_time` as a share of the requests; 1 for an empty trace."""
        return self.on_time / self.requests if self.requests else 1.0

    def __add__(self, other: "Bound") -> "Bound":
        return Bound(
            self.requests + other.requests,
            self.on_time + other.on_time,
            self.found + other.found,
            self.optimal and other.optimal,
            self.solve_s + other.solve_s,
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """What the program knows of a request: when it may do what."""

    num_steps: int
    arrival_s: float
    first_step_s: float
    last_step_s: float
    deadline_s: float
    shape: FluidShape


def clairvoyant_bound(
    given: LatencyTable | LatencyTables,
    requests: Iterable[Request],
    world_size: int,
    settings: BoundSettings | None = None,
) -> Bound:
    """Bound the number of requests that any policy can finish by their deadlines.

    Relaxed are: which GPUs (any `world_size` of them count), whole steps, the cost of switching, and batch
    partners (a request pays k/b GPUs as if its batch were always full). Kept are: arrivals and deadlines, one
    mode at a time per request, encode before the first step and decode behind the last, the GPUs of the world.
    Models and shapes outside the tables count as missed: the engine refuses them.

    Args:
        given: what work costs: a table for all requests, or one per model.
        requests: in order of arrival.
        world_size: number of ranks.
        settings: see `BoundSettings`.

    Raises:
        BoundError: the solver failed.
    """
    settings = settings or BoundSettings()
    tables = as_tables(given)
    shapes: dict[tuple[str, int, int], FluidShape | None] = {}
    total = Bound(0, 0, 0, True, 0.0)
    for block in _blocks(requests, settings.block_requests):
        windows = []
        for request in block:
            key = (request.model, request.height, request.width)
            if key not in shapes:
                shapes[key] = _shape_or_none(tables, *key, world_size, batching=settings.batching)
            shape = shapes[key]
            window = _window(request, shape) if shape else None
            if window is not None:
                windows.append(window)
        time_left_s = settings.time_limit_s - total.solve_s
        total += replace(_solve(windows, world_size, settings, time_left_s), requests=len(block))
    return total


def _shape_or_none(
    tables: LatencyTables, model: str, height: int, width: int, world_size: int, *, batching: bool
) -> FluidShape | None:
    try:
        shape = fluid_shape(tables.of(model), height, width, world_size, batching=batching)
    except LatencyTableError:
        return None
    return shape if shape.modes else None


def _blocks(requests: Iterable[Request], limit: int) -> Iterable[list[Request]]:
    """Busy periods (nobody's window reaches into the next), and pieces of those that are too long."""
    block: list[Request] = []
    busy_until_s = -math.inf
    longest_s = 0.0
    for request in requests:
        too_long = len(block) >= limit and request.arrival_s - block[0].arrival_s >= _BLOCK_WINDOWS * longest_s
        if block and (request.arrival_s >= busy_until_s or too_long):
            yield block
            block, busy_until_s, longest_s = [], -math.inf, 0.0
        block.append(request)
        busy_until_s = max(busy_until_s, request.deadline_s)
        longest_s = max(longest_s, request.slo_s)
    if block:
        yield block


def _window(request: Request, shape: FluidShape) -> _Window | None:
    """None where even a whole world of its own could not save the request."""
    first_step_s = request.arrival_s + shape.encode_s + shape.lead_in_s
    last_step_s = request.deadline_s - shape.decode_s
    if first_step_s + request.num_steps / shape.fastest_steps_per_s > last_step_s + _ROUNDING:
        return None
    return _Window(request.num_steps, request.arrival_s, first_step_s, last_step_s, request.deadline_s, shape)


def _solve(windows: Sequence[_Window], world_size: int, settings: BoundSettings, time_limit_s: float) -> Bound:
    if len(windows) <= 1:
        return Bound(len(windows), len(windows), len(windows), True, 0.0)
    started_s = time.perf_counter()
    merge_s = _merge_s(windows) if settings.merge_s is None else settings.merge_s
    solved = maximise(_build(windows, world_size, merge_s), time_limit_s=time_limit_s, gap=settings.gap)
    upper = min(len(windows), math.floor(solved.upper + _ROUNDING))
    found = min(upper, round(solved.found))
    return Bound(len(windows), upper, found, solved.optimal or upper == found, time.perf_counter() - started_s)


def _merge_s(windows: Sequence[_Window]) -> float:
    """How close interval ends may lie: no closer than an eighth of a window where there are too many of them."""
    span_s = max(window.deadline_s for window in windows) - min(window.arrival_s for window in windows)
    mean_window_s = sum(window.deadline_s - window.arrival_s for window in windows) / len(windows)
    intervals_per_window = 2 * len(windows) * mean_window_s / span_s
    return mean_window_s / _INTERVALS_PER_WINDOW if intervals_per_window > _INTERVALS_PER_WINDOW else 0.0


def _build(windows: Sequence[_Window], world_size: int, merge_s: float) -> RowWiseModel:
    model = RowWiseModel()
    points = _points(windows, merge_s)
    load: list[list[tuple[int, float]]] = [[] for _ in points[:-1]]
    for window in windows:
        _add_request(model, window, points, load)
    for index, terms in enumerate(load):
        if terms:
            model.row(terms, upper=world_size * (points[index + 1] - points[index]))
    return model


def _points(windows: Sequence[_Window], merge_s: float) -> list[float]:
    """Where intervals begin and end: window end points, less those that lie too close to the one before."""
    begin_s = min(window.arrival_s for window in windows)
    end_s = max(window.deadline_s for window in windows)
    kept = [begin_s]
    for point in sorted({p for window in windows for p in (window.first_step_s, window.last_step_s)}):
        if point - kept[-1] > max(merge_s, _ROUNDING) and end_s - point > _ROUNDING:
            kept.append(point)
    return [*kept, end_s]


def _add_request(
    model: RowWiseModel, window: _Window, points: Sequence[float], load: list[list[tuple[int, float]]]
) -> None:
    """Columns and rows of one request; adds what it takes from the world to the intervals' `load`.

    Progress in an interval counts only if the request is saved (time ≤ overlap·y): that keeps the linear
    relaxation tight, so that few branches are needed.
    """
    saved = model.choice()
    progress: list[tuple[int, float]] = [(saved, -float(window.num_steps))]
    single: list[tuple[int, float]] = [(saved, -window.shape.single_gpu_s)]
    first = max(0, bisect_right(points, window.arrival_s) - 1)
    last = min(len(points) - 1, bisect_left(points, window.deadline_s))
    for index in range(first, last):
        begin_s, end_s = points[index], points[index + 1]
        whole_s = min(end_s, window.deadline_s) - max(begin_s, window.arrival_s)
        steps_s = min(end_s, window.last_step_s) - max(begin_s, window.first_step_s)
        if whole_s > 0:
            column = model.column(whole_s)
            single.append((column, 1.0))
            load[index].append((column, 1.0))
        if steps_s > 0:
            columns = [model.column(steps_s) for _ in window.shape.modes]
            model.row([*((column, 1.0) for column in columns), (saved, -steps_s)], upper=0.0)
            for column, mode in zip(columns, window.shape.modes, strict=True):
                progress.append((column, mode.steps_per_s))
                load[index].append((column, mode.gpus))
    model.row(progress, lower=0.0, upper=math.inf)
    model.row(single, lower=0.0, upper=math.inf)
