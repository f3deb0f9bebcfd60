"""Measured times beside the latency table's: ratios, warnings, and a corrected table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import LatencyTableError, Segment
from tetriserve_backend.engine.config import DriftSettings
from tetriserve_backend.engine.model_drift import ModelDrift, ShapeDrift
from tetriserve_backend.engine.prediction import num_works
from tetriserve_backend.engine.rank_speeds import RankSpeeds
from tetriserve_backend.latency_table import LatencyTables, Work, work_of
from tetriserve_backend.scheduler.groups import aligned_groups

_SHORTEST_S = 1e-4
"""Below that, what is measured is the clock."""

_REVIEW_S = 1.0
"""How often the tables are corrected at most: each time, all that was derived from them is derived anew."""

_SLOW, _STILL_SLOW = 1.05, 1.03
"""From when on a rank counts as slower than the others, and not as one that has had bad luck; and until when."""

_RANK_MIN_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class RankDrift:
    """A rank's times over those of the middle rank, from `samples` segments."""

    rank: int
    ratio: float
    samples: int


@dataclass(frozen=True, slots=True)
class DriftSnapshot:
    """What is known about drift.

    Attributes:
        shapes: all that was measured lately, by model.
        ranks: all ranks of the world.
        warnings: how many were given since the start.
        corrected: names of the models that are planned with a corrected table.
    """

    shapes: tuple[ShapeDrift, ...]
    ranks: tuple[RankDrift, ...]
    warnings: int
    corrected: tuple[str, ...]


class DriftMonitor:
    """Compares finished segments with the latency table and corrects it.

    Pure: depends on nothing but its calls, so a replayed stream of events corrects in the same way.

    What is measured has two reasons: the work may take longer than the table says, and a rank may be slower than
    the others. A corrected table holds the times on the ranks of the middle, times what slow ranks cost on average
    over the groups of each size; `slowness` says how far given ranks are from that.

    Args:
        tables: what the engine and its policy plan with; corrected tables are put here.
        world_size: number of ranks.
        settings: see `DriftSettings`.
    """

    def __init__(self, tables: LatencyTables, world_size: int, settings: DriftSettings) -> None:
        self._tables, self._settings, self._world_size = tables, settings, world_size
        self._models: dict[str, ModelDrift] = {}
        self._ranks = RankSpeeds(world_size, settings.half_life)
        self._slow_ranks: dict[int, float] = {}
        self._average: dict[int, float] = {}
        self._warned_ranks: set[int] = set()
        self._relative = [1.0] * world_size
        self._reviewed_s = -math.inf
        self._warnings = 0

    @property
    def slow_ranks(self) -> Mapping[int, float]:
        """Ranks that take longer than the others, and how many times as long; empty unless drift is corrected."""
        return self._slow_ranks

    def observe(self, segment: Segment, start_s: float, end_s: float, now_s: float) -> list[str]:
        """A segment took from `start_s` to `end_s` on its ranks; what an operator should be told about it."""
        measured_s = end_s - start_s
        if not self._tables.has(segment.model):
            return []
        model = self._model_of(segment.model)
        work, ranks = work_of(segment), segment.placement.ranks
        expected_s = num_works(segment) * _seconds(model, work)
        if expected_s < _SHORTEST_S or measured_s <= 0.0:
            return []
        ratio = measured_s / expected_s
        # What a slow rank adds says nothing about the work, and the other way round.
        warning = model.add(work, ratio, self._slowest_of(ranks))
        self._ranks.add(ranks, ratio / model.usual(work))
        warnings = [warning] if warning else []
        if now_s >= self._reviewed_s + _REVIEW_S:
            self._reviewed_s = now_s
            warnings += self._review()
        self._warnings += len(warnings)
        return warnings

    def slowness(self, ranks: Sequence[int]) -> float:
        """By how much a segment on these ranks should take longer than the corrected table says."""
        return self._slowest_of(ranks) / self._average.get(len(ranks), 1.0) if self._slow_ranks else 1.0

    def forget_rank(self, rank: int) -> None:
        """The rank is lost; its next worker may be as fast as any."""
        self._ranks.forget(rank)

    def snapshot(self) -> DriftSnapshot:
        """What is known since the last review."""
        return DriftSnapshot(
            shapes=tuple(shape for model in self._models.values() for shape in model.shapes()),
            ranks=tuple(RankDrift(r, ratio, self._ranks.samples(r)) for r, ratio in enumerate(self._relative)),
            warnings=self._warnings,
            corrected=tuple(name for name, model in self._models.items() if model.is_corrected),
        )

    def _model_of(self, model: str) -> ModelDrift:
        """The drift of a model against the table that it was given, which is not one of ours."""
        name = self._tables.name_of(model)
        table = self._tables.of(name)
        known = self._models.get(name)
        if known is None or known.current is not table:
            known = self._models[name] = ModelDrift(name, table, self._settings)
        return known

    def _slowest_of(self, ranks: Sequence[int]) -> float:
        return max(self._slow_ranks.get(rank, 1.0) for rank in ranks) if self._slow_ranks else 1.0

    def _review(self) -> list[str]:
        self._relative = self._ranks.relative()
        if self._settings.correction:
            known = self._slow_ranks
            self._slow_ranks = {
                rank: ratio
                for rank, ratio in enumerate(self._relative)
                if ratio >= (_STILL_SLOW if rank in known else _SLOW) and self._ranks.samples(rank) >= _RANK_MIN_SAMPLES
            }
            if self._slow_ranks.keys() != known.keys():
                for model in self._models.values():
                    model.doubt()
            sizes = aligned_groups(self._world_size) if self._slow_ranks else {}
            self._average = {size: statistics.fmean(map(self._slowest_of, groups)) for size, groups in sizes.items()}
            self._correct()
        return self._rank_warnings()

    def _correct(self) -> None:
        for name in [name for name in self._models if name not in self._tables.models]:
            del self._models[name]
        for name, model in self._models.items():
            if model.current is self._tables.of(name) and model.correct(self._average):
                self._tables.put(name, model.current)

    def _rank_warnings(self) -> list[str]:
        warnings = []
        for rank, ratio in enumerate(self._relative):
            samples = self._ranks.samples(rank)
            if ratio <= 1.0 + self._settings.threshold / 2:
                self._warned_ranks.discard(rank)
            elif ratio > 1.0 + self._settings.threshold and samples >= _RANK_MIN_SAMPLES:
                if rank in self._warned_ranks:
                    continue
                self._warned_ranks.add(rank)
                warnings.append(
                    f"rank {rank} takes {ratio:.2f} times as long as the other ranks ({samples} segments); look at"
                    " its clocks, its temperature and what else runs there"
                )
        return warnings


def _seconds(model: ModelDrift, work: Work) -> float:
    try:
        return model.original.seconds(work)
    except LatencyTableError:
        # The model was given another table, which lacks this, while the segment ran.
        return 0.0
