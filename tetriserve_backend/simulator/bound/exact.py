"""The exact optimum of a tiny trace by exhaustive search (App. B), against which policies and bound are tested."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tetriserve_backend.domain import Request
from tetriserve_backend.latency_table import LatencyTable

_TOLERANCE_S = 1e-9

_Option: TypeAlias = tuple[int, float]
"""A way to do a piece of work: GPUs and seconds."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request as pieces of work that follow each other; `least_s[i]` is the least time from piece i to the end."""

    arrival_s: float
    deadline_s: float
    pieces: tuple[tuple[_Option, ...], ...]
    least_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a job is: the piece that runs until `busy_until_s` on `gpus`, or that comes next when `gpus` is 0."""

    piece: int
    busy_until_s: float
    gpus: int


_Places: TypeAlias = tuple[_Place | None, ...]
"""One per job; None for a job that is over, in time or given up."""


def exact_optimum(table: LatencyTable, requests: Sequence[Request], world_size: int) -> int:
    """The largest number of these requests that any schedule finishes by their deadlines.

    Searches all schedules of encode, single steps (each at any degree of the table) and decode, in which work
    starts only at an arrival or when other work ends: among these there is always an optimal one, because
    starting a piece earlier never hurts. Dispatch costs nothing here, and there are no batches.

    The time grows exponentially: a few requests of a few steps.
    """
    jobs = [_job(table, request, world_size) for request in requests]
    return _Search(jobs, world_size).best_from(0.0, tuple(_Place(0, job.arrival_s, 0) for job in jobs))


class _Search:
    def __init__(self, jobs: Sequence[_Job], world_size: int) -> None:
        self._jobs, self._world_size = jobs, world_size
        self._known: dict[tuple[float, _Places], int] = {}

    def best_from(self, now_s: float, places: _Places) -> int:
        """Most jobs that can still be finished in time from here."""
        finished, places = self._settle(now_s, places)
        alive = sum(place is not None for place in places)
        if not alive:
            return finished
        key = (now_s, places)
        if key not in self._known:
            best = 0
            for started in self._starts(now_s, places):
                ends = [place.busy_until_s for place in started if place is not None]
                later = [end_s for end_s in ends if end_s > now_s + _TOLERANCE_S]
                if later:
                    best = max(best, self.best_from(min(later), started))
                if best == alive:
                    break
            self._known[key] = best
        return finished + self._known[key]

    def _settle(self, now_s: float, places: _Places) -> tuple[int, _Places]:
        """Move on what has ended by now, and give up what cannot make it; also how many have finished."""
        finished, settled = 0, []
        for job, place in zip(self._jobs, places, strict=True):
            if place is None or (place.gpus and place.busy_until_s > now_s + _TOLERANCE_S):
                settled.append(place)
                continue
            piece = place.piece + 1 if place.gpus else place.piece
            ready_s = max(now_s, place.busy_until_s)
            if piece == len(job.pieces):
                finished += 1
            in_time = piece < len(job.pieces) and ready_s + job.least_s[piece] <= job.deadline_s + _TOLERANCE_S
            settled.append(_Place(piece, ready_s, 0) if in_time else None)
        return finished, tuple(settled)

    def _starts(self, now_s: float, places: _Places) -> Iterator[_Places]:
        """Every choice of what to start now, nothing included."""
        free = self._world_size - sum(place.gpus for place in places if place is not None)
        choices: list[list[_Place | None]] = []
        for job, place in zip(self._jobs, places, strict=True):
            options: list[_Place | None] = [place]
            if place is not None and not place.gpus and place.busy_until_s <= now_s + _TOLERANCE_S:
                options += [
                    _Place(place.piece, now_s + seconds, gpus)
                    for gpus, seconds in job.pieces[place.piece]
                    if gpus <= free
                ]
            choices.append(options)
        for chosen in itertools.product(*choices):
            if sum(place.gpus for place in chosen if place is not None) <= self._world_size:
                yield chosen


def _job(table: LatencyTable, request: Request, world_size: int) -> _Job:
    height, width = request.height, request.width
    step = tuple(
        (degree, table.step_s(height, width, degree)) for degree in table.degrees(height, width) if degree <= world_size
    )
    pieces = (((1, table.encode_s()),), *((step,) * request.num_steps), ((1, table.decode_s(height, width)),))
    fastest_s = [min(seconds for _, seconds in options) for options in pieces]
    least_s = tuple(sum(fastest_s[index:]) for index in range(len(pieces)))
    return _Job(request.arrival_s, request.deadline_s, pieces, least_s)
