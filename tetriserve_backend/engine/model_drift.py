"""How far the times of one model have moved from its latency table."""

import math
import statistics
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine.config import DriftSettings
from tetriserve_backend.engine.fading_mean import FadingMean
from tetriserve_backend.latency_table import LatencyTable, Work

_MAX_WORKS = 128
_WINDOW = 25
_FILTER = 3
"""A single outlier among so many values in a row never counts."""

_FADE = 200.0
"""A factor keeps the scheduler from work that seems slow, hence from learning better: half of it is forgotten within so
many segments of the model."""

_ENOUGH, _ENOUGH_STILL = 6.0, 1.0
"""Recent segments from which on a level may say something of its own, and until when."""

_ENOUGH_USUAL = 3.0
"""Recent segments of some work from which on others can be compared with them."""

_SURE = 4.0
"""A level that says something of its own differs from the one above by so many standard errors …"""

_CLEAR = math.log(1.04)
"""… and by so much. Smaller differences are left alone: the policy's choice between degrees that cost nearly the same
must not follow noise. A level that counts does so until it is at half of either."""

_LOWEST, _HIGHEST = 0.5, 3.0
_LOWEST_LOG, _HIGHEST_LOG = math.log(_LOWEST), math.log(_HIGHEST)
"""No correction beyond: something else must be wrong then."""

_WORTH = math.log(1.02)
"""Corrections that move nothing by more are not made."""


@dataclass(frozen=True, slots=True)
class ShapeDrift:
    """One kind of work of one model.

    Attributes:
        is_entry: whether the table has an entry for it, and not only for others around it.
        ratio: median of measured over expected seconds of the last segments.
        samples: how many segments that are.
        factor: what the table's time is multiplied by for planning; 1 where it is not corrected.
    """

    model: str
    work: Work
    is_entry: bool
    ratio: float
    samples: int
    factor: float


class ModelDrift:
    """Ratios of measured to expected times, by kind of work, and the table that follows from them.

    A factor is estimated on three levels, each as a difference from the one before: all work of a kind (encode,
    denoise, decode), all of that kind, degree and batch, and the very work. So a machine that is slower as a whole is
    learnt before each shape has been seen, and what was never measured is corrected as its like.

    Args:
        name: of the model.
        table: as it was measured.
        settings: see `DriftSettings`.
    """

    def __init__(self, name: str, table: LatencyTable, settings: DriftSettings) -> None:
        self.name, self.original, self.current = name, table, table
        self._settings = settings
        self._works: dict[Work, _Ratios] = {}
        self._levels: dict[Hashable, _Level] = {}
        self._samples = 0
        self._entries = table.works
        # The levels that each kind of work is counted in; None where that has changed.
        self._chains: list[tuple[Work, tuple[_Level, ...]]] | None = None
        # Logarithms of the factors in `current`.
        self._applied: dict[Work, float] = {}

    @property
    def is_corrected(self) -> bool:
        """Whether `current` is not `original`."""
        return self.current is not self.original

    def add(self, work: Work, ratio: float, slowness: float) -> str | None:
        """Work took `ratio` times what the original table says, `slowness` of it due to its ranks; a new warning."""
        ratios = self._works.pop(work, None) or _Ratios()
        self._works[work] = ratios
        if len(self._works) > _MAX_WORKS:
            rarest = next(iter(self._works))
            del self._works[rarest]
            self._levels.pop(_levels(rarest)[-1], None)
            self._chains = None
        self._samples += 1
        value = ratios.add(ratio, slowness)
        for key in _levels(work):
            if key not in self._levels:
                self._levels[key] = _Level(FadingMean(self._settings.half_life, _FADE))
                self._chains = None
            self._levels[key].add(value, self._samples)
        return self._warning(work, ratios)

    def doubt(self) -> None:
        """It has turned out that some ranks are slow, or no longer: what their work seemed to say is void."""
        self._levels = {key: level for key, level in self._levels.items() if isinstance(key, SegmentKind)}
        self._chains = None
        for level in self._levels.values():
            level.doubt()

    def usual(self, work: Work) -> float | None:
        """The mean ratio of that work, to tell by how much a further one is off; None until there was enough of it.

        It is there sooner than the factor: else ranks that happened to do more of it before the factor was learnt would
        look slower than those that did more after.
        """
        level = self._levels.get(work)
        return level.usual if level is not None and level.weight_at(self._samples) >= _ENOUGH_USUAL else None

    def correct(self, average: Mapping[int, float]) -> bool:
        """Make `current` anew if that is worth it; whether it was. `average`: what slow ranks cost, by degree."""
        if self._samples < self._settings.min_samples or self._says_nothing(average):
            return False
        if self._chains is None:
            works = dict.fromkeys((*self._entries, *self._steps()))
            self._chains = [(work, self._chain(work)) for work in works]
        found = [
            (work, self._estimate(chain) + (math.log(average.get(work.degree, 1.0)) if average else 0.0))
            for work, chain in self._chains
        ]
        if all(abs(estimate - self._applied.get(work, 0.0)) < _WORTH for work, estimate in found):
            return False
        self._applied = {work: estimate for work, estimate in found if estimate}
        self.current = self.original.corrected(self._factor, self._steps())
        return True

    def _says_nothing(self, average: Mapping[int, float]) -> bool:
        """Whether no level differs from the table by so much that it could count; the usual case, seen at a glance."""
        return not average and not self._applied and not any(level.may_count for level in self._levels.values())

    def shapes(self) -> list[ShapeDrift]:
        """What was measured lately."""
        entries = set(self._entries)
        return [
            ShapeDrift(self.name, work, work in entries, ratios.median, len(ratios.window), self._factor(work))
            for work, ratios in self._works.items()
        ]

    def _factor(self, work: Work) -> float:
        return math.exp(self._applied.get(work, 0.0))

    def _steps(self) -> list[Work]:
        return [work for work in self._works if work.kind is SegmentKind.DENOISE]

    def _chain(self, work: Work) -> tuple["_Level", ...]:
        return tuple(self._levels[key] for key in _levels(work) if key in self._levels)

    def _estimate(self, chain: Iterable["_Level"]) -> float:
        """The logarithm of the factor of work that is counted in these levels."""
        estimate = 0.0
        for level in chain:
            estimate = level.estimate(estimate, self._samples)
        return min(_HIGHEST_LOG, max(_LOWEST_LOG, estimate))

    def _warning(self, work: Work, ratios: "_Ratios") -> str | None:
        distance = abs(ratios.median - 1.0)
        if distance <= self._settings.threshold / 2:
            ratios.warned = False
        samples = len(ratios.window)
        if ratios.warned or distance <= self._settings.threshold or samples < self._settings.min_samples:
            return None
        ratios.warned = True
        return (
            f"model {self.name!r}: {_words(work)} takes {ratios.median:.2f} times what the latency table says"
            f" (median of {samples} segments); measure the table anew with `tetriserve profile`"
        )


class _Ratios:
    """The last ratios of one kind of work."""

    __slots__ = ("_recent", "median", "warned", "window")

    def __init__(self) -> None:
        self.window: deque[float] = deque(maxlen=_WINDOW)
        self.median = 1.0
        self.warned = False
        self._recent: deque[float] = deque(maxlen=_FILTER)

    def add(self, ratio: float, slowness: float) -> float:
        """Take in a ratio; what it counts as, as a logarithm."""
        self.window.append(ratio)
        self.median = statistics.median(self.window)
        self._recent.append(math.log(min(_HIGHEST, max(_LOWEST, ratio / slowness))))
        return statistics.median_low(self._recent)


class _Level:
    """The mean of some logarithms of ratios, and whether it differs enough from the level above to count."""

    __slots__ = ("_counts", "_estimate", "_estimated_at", "_mean")

    def __init__(self, mean: FadingMean) -> None:
        self._mean, self._counts = mean, False
        self._estimate, self._estimated_at = 0.0, -1

    def add(self, value: float, now: int) -> None:
        self._mean.add(value, now)

    @property
    def usual(self) -> float:
        return math.exp(self._mean.value)

    def weight_at(self, now: int) -> float:
        """How many segments it is worth."""
        return self._mean.weight_at(now)

    @property
    def may_count(self) -> bool:
        """Whether it counts, or could if the levels above say nothing."""
        return self._counts or abs(self._mean.value) >= _CLEAR

    def doubt(self) -> None:
        self._mean.doubt(_ENOUGH)
        self._estimated_at = -1

    def estimate(self, above: float, now: int) -> float:
        """The logarithm of the factor; that of the level above if this one says nothing, or nothing any more."""
        # A level above many kinds of work is asked as often.
        if now != self._estimated_at:
            self._estimate, self._estimated_at = self._estimate_anew(above, now), now
        return self._estimate

    def _estimate_anew(self, above: float, now: int) -> float:
        enough, easier = (_ENOUGH_STILL, 0.5) if self._counts else (_ENOUGH, 1.0)
        distance = abs(self._mean.value - above)
        self._counts = (
            distance >= easier * _CLEAR
            and self._mean.weight_at(now) >= enough
            and distance >= easier * _SURE * self._mean.error_at(now)
        )
        return self._mean.value if self._counts else above


def _levels(work: Work) -> tuple[Hashable, ...]:
    """What `work` is counted with, the widest first."""
    return work.kind, (work.kind, work.degree, work.batch, work.cfg_degree), work


def _words(work: Work) -> str:
    if work.kind is SegmentKind.ENCODE:
        return "an encode"
    if work.kind is SegmentKind.DECODE:
        return f"a decode of {work.height}x{work.width}"
    batch = f", {work.batch} at a time" if work.batch > 1 else ""
    split = ", guidance split" if work.cfg_degree > 1 else ""
    return f"a step of {work.height}x{work.width} on {work.degree} rank{'s' * (work.degree > 1)}{batch}{split}"
