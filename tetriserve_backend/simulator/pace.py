"""How fast real ranks were beside a latency table, over time: what makes a real run repeatable in virtual time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from tetriserve_backend.domain import Segment, SegmentKind
from tetriserve_backend.engine.prediction import work_seconds
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables


@dataclass(frozen=True, slots=True)
class TimedSegment:
    """A segment that ended well, in seconds since its trace began."""

    segment: Segment
    start_s: float
    end_s: float


_Work: TypeAlias = tuple[str, SegmentKind, int, int, int, int]


@dataclass(slots=True)
class _Ratio:
    """Seconds that work took, and should have taken."""

    took_s: float = 0.0
    expected_s: float = 0.0

    def add(self, took_s: float, expected_s: float) -> None:
        self.took_s += took_s
        self.expected_s += expected_s

    @property
    def value(self) -> float:
        return self.took_s / self.expected_s if self.expected_s else 1.0


class Pace:
    """A factor on each segment's duration: how much longer such work took on those ranks at that time.

    It has two parts, so that little data will do: how the kind of work (resolution and degree) compares with the
    table over the whole run, and how each rank compares with that from one stretch of time to the next. A group is as
    slow as its slowest rank, and a segment goes through as many stretches as it lasts.

    Args:
        segments: of a real run.
        tables: what they should have taken.
        bin_s: length of a stretch of time: about that of a segment, since a rank that is slow for half a second is
            slow for some segments and not for the next ones.
    """

    def __init__(
        self, segments: Iterable[TimedSegment], tables: LatencyTable | LatencyTables, bin_s: float = 0.25
    ) -> None:
        self._tables, self._bin_s = as_tables(tables), bin_s
        self._works: dict[_Work, _Ratio] = defaultdict(_Ratio)
        self._ranks: dict[tuple[int, int], _Ratio] = defaultdict(_Ratio)
        self._world: dict[int, _Ratio] = defaultdict(_Ratio)
        self._overall = _Ratio()
        listed = list(segments)
        for timed in listed:
            took_s, expected_s = timed.end_s - timed.start_s, self._expected_s(timed.segment)
            self._works[_work(timed.segment)].add(took_s, expected_s)
            self._overall.add(took_s, expected_s)
        for timed in listed:
            self._add_to_bins(timed)

    @property
    def overall(self) -> float:
        """Seconds that all work took over what it should have taken; 1 for no work."""
        return self._overall.value

    def __call__(self, segment: Segment, start_s: float) -> float:
        """The factor of a segment that starts at `start_s`."""
        expected_s = self._expected_s(segment)
        if not expected_s:
            return self._of_work(segment)
        number, at_s, left_s = int(start_s / self._bin_s), start_s, expected_s * self._of_work(segment)
        while left_s > 0:
            slowness = max(self._of_rank(rank, number) for rank in segment.placement.ranks)
            took_s = min(left_s * slowness, max(0.0, (number + 1) * self._bin_s - at_s))
            left_s = left_s - took_s / slowness if took_s < left_s * slowness else 0.0
            number, at_s = number + 1, at_s + took_s
        return (at_s - start_s) / expected_s

    def _of_work(self, segment: Segment) -> float:
        ratio = self._works.get(_work(segment))
        return ratio.value if ratio is not None else self.overall

    def _of_rank(self, rank: int, number: int) -> float:
        """A rank that did nothing then was as fast as the others; if none did anything, as over the whole run."""
        ratio = self._ranks.get((rank, number)) or self._world.get(number)
        return ratio.value if ratio is not None else 1.0

    def _add_to_bins(self, timed: TimedSegment) -> None:
        expected_s = self._expected_s(timed.segment) * self._of_work(timed.segment)
        whole_s = timed.end_s - timed.start_s
        for number, took_s in self._stretches(timed.start_s, timed.end_s):
            part_s = expected_s * took_s / whole_s
            self._world[number].add(took_s, part_s)
            for rank in timed.segment.placement.ranks:
                self._ranks[rank, number].add(took_s, part_s)

    def _stretches(self, start_s: float, end_s: float) -> Iterator[tuple[int, float]]:
        """The stretches of time between two moments, and how many seconds of each lie there."""
        number = int(start_s / self._bin_s)
        while start_s < end_s:
            number_end_s = min(end_s, (number + 1) * self._bin_s)
            if number_end_s > start_s:
                yield number, number_end_s - start_s
            start_s, number = max(start_s, number_end_s), number + 1

    def _expected_s(self, segment: Segment) -> float:
        return work_seconds(self._tables.of(segment.model), segment)


def _work(segment: Segment) -> _Work:
    """What has one entry in the table."""
    shape = (0, 0) if segment.kind is SegmentKind.ENCODE else (segment.height, segment.width)
    return segment.model, segment.kind, *shape, segment.placement.sp_degree, segment.cfg_degree
