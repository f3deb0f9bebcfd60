"""Measured times beside the latency table's: ratios, warnings, and a corrected table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import LatencyTableError, Segment, SegmentKind
from tetriserve_backend.engine.config import DriftSettings
from tetriserve_backend.engine.model_drift import ModelDrift, ShapeDrift
from tetriserve_backend.engine.prediction import num_works
from tetriserve_backend.engine.quarantine import Quarantine
from tetriserve_backend.engine.rank_speeds import RankSpeeds, RelativeSpeeds
from tetriserve_backend.latency_table import LatencyTables, Work, work_of
from tetriserve_backend.scheduler.groups import Ranks, aligned_groups

_SHORTEST_S = 1e-4
"""Below that, what is measured is the clock."""

_REVIEW_S = 1.0
"""How often the tables are corrected at most: each time, all that was derived from them is derived anew."""

_SLOW, _STILL_SLOW = 1.05, 1.03
"""From when on a rank counts as slower than the others, and not as one that has had bad luck; and until when."""

_RANK_MIN_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class RankDrift:
    """A rank's times over those of the middle rank, from `samples` segments, and whether it gets no work therefore."""

    rank: int
    ratio: float
    samples: int
    is_quarantined: bool = False


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
    over the groups of each size; `slowness` says how far given ranks are from that. Ranks that are too slow to be of
    use go into quarantine.

    Args:
        tables: what the engine and its policy plan with; corrected tables are put here.
        world_size: number of ranks.
        settings: see `DriftSettings`.
    """

    def __init__(self, tables: LatencyTables, world_size: int, settings: DriftSettings) -> None:
        self._tables, self._settings, self._world_size = tables, settings, world_size
        self._models: dict[str, ModelDrift] = {}
        self._ranks = RankSpeeds(world_size, settings.half_life)
        self._quarantine = Quarantine(settings.quarantine_ratio if settings.correction else None, world_size)
        self._slow_ranks: dict[int, float] = {}
        self._average: dict[int, float] = {}
        self._warned_ranks: set[Ranks] = set()
        self._relative = RelativeSpeeds((1.0,) * world_size, {}, {})
        self._reviewed_s = -math.inf
        self._warnings = 0

    @property
    def slow_ranks(self) -> Mapping[int, float]:
        """Ranks that take longer than the others, and how many times as long; empty unless drift is corrected."""
        return self._slow_ranks

    @property
    def quarantined_ranks(self) -> frozenset[int]:
        """Ranks that should get no work, unless there are no others; the same object until that changes."""
        return self._quarantine.ranks

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
        usual = model.usual(work)
        warning = model.add(work, ratio, self._slowest_of(ranks))
        # Ranks without text encoders in their memory take longer to encode, and are not slow.
        if usual is not None and work.kind is not SegmentKind.ENCODE:
            self._ranks.add(ranks, ratio / usual)
        self._quarantine.note(len(ranks), measured_s)
        warnings = [warning] if warning else []
        if now_s >= self._reviewed_s + _REVIEW_S:
            self._reviewed_s = now_s
            warnings += self._review(now_s)
        self._warnings += len(warnings)
        return warnings

    def release_ranks(self, now_s: float) -> None:
        """Let ranks return whose time in quarantine is over, whether or not anything is measured meanwhile."""
        for rank in self._quarantine.release(now_s):
            self._ranks.forget(rank)

    def slowness(self, ranks: Sequence[int]) -> float:
        """By how much a segment on these ranks should take longer than the corrected table says."""
        return self._slowest_of(ranks) / self._average.get(len(ranks), 1.0) if self._slow_ranks else 1.0

    def forget_rank(self, rank: int) -> None:
        """The rank is lost; its next worker may be as fast as any."""
        self._ranks.forget(rank)
        self._quarantine.forget(rank)

    def snapshot(self) -> DriftSnapshot:
        """What is known since the last review."""
        return DriftSnapshot(
            shapes=tuple(shape for model in self._models.values() for shape in model.shapes()),
            ranks=tuple(
                RankDrift(rank, ratio, self._ranks.samples(rank), rank in self._quarantine.ranks)
                for rank, ratio in enumerate(self._relative.ratios)
            ),
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

    def _review(self, now_s: float) -> list[str]:
        self._relative = self._ranks.relative()
        warnings = self._rank_warnings()
        if self._settings.correction:
            warnings += map(self._quarantine_warning, self._quarantine.review(self._relative.evidence, now_s))
            self._note_slow_ranks()
            self._correct()
        return warnings

    def _note_slow_ranks(self) -> None:
        known = self._slow_ranks
        self._slow_ranks = {
            rank: ratio
            for rank, ratio in enumerate(self._relative.ratios)
            if ratio >= (_STILL_SLOW if rank in known else _SLOW) and self._ranks.samples(rank) >= _RANK_MIN_SAMPLES
        }
        if self._slow_ranks.keys() != known.keys():
            for model in self._models.values():
                model.doubt()
        sizes = aligned_groups(self._world_size) if self._slow_ranks else {}
        self._average = {size: self._average_of(groups) for size, groups in sizes.items()}

    def _average_of(self, groups: Sequence[Ranks]) -> float:
        """What slow ranks cost in these groups; in those that are in use, if any are."""
        used = [group for group in groups if self._quarantine.ranks.isdisjoint(group)]
        return statistics.fmean(map(self._slowest_of, used or groups))

    def _correct(self) -> None:
        for name in [name for name in self._models if name not in self._tables.models]:
            del self._models[name]
        for name, model in self._models.items():
            if model.current is self._tables.of(name) and model.correct(self._average):
                self._tables.put(name, model.current)

    def _rank_warnings(self) -> list[str]:
        """Of each set of ranks of which one is slow, once, until it is not suspected any more."""
        suspects = self._relative.suspects
        still = 1.0 + self._settings.threshold / 2
        self._warned_ranks = {ranks for ranks in self._warned_ranks if suspects.get(ranks, 1.0) > still}
        warnings = []
        for ranks, ratio in suspects.items():
            samples = min(map(self._ranks.samples, ranks))
            if (
                ratio > 1.0 + self._settings.threshold
                and samples >= _RANK_MIN_SAMPLES
                and ranks not in self._warned_ranks
            ):
                self._warned_ranks.add(ranks)
                warnings.append(
                    f"{_named(ranks)} takes {ratio:.2f} times as long as the other ranks ({samples} segments); look at"
                    " its clocks, its temperature and what else runs there"
                )
        return warnings

    def _quarantine_warning(self, rank: int) -> str:
        ratio = self._relative.evidence[rank].ratio
        return (
            f"rank {rank} gets no work for a while: it takes {ratio:.2f} times as long as the other ranks, and wide"
            " groups wait for it (engine.drift.quarantine_ratio)"
        )


def _named(ranks: Ranks) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"one of the ranks {', '.join(map(str, ranks))}"


def _seconds(model: ModelDrift, work: Work) -> float:
    try:
        return model.original.seconds(work)
    except LatencyTableError:
        # The model was given another table, which lacks this, while the segment ran.
        return 0.0
