"""Two latency tables entry by entry."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.table.findings import Entry, label, move_label
from tetriserve_backend.cli.table.flat_settings import flat_settings
from tetriserve_backend.latency_table.document import StepEntry, TableDocument
from tetriserve_profiling.spread import NOISE_FLOOR, tolerance

_FACTS = ("model", "device", "world_size", "dtype", "text_tokens", "guided", "source", "software")
_UNTOLD = "not told"


@dataclass(frozen=True, slots=True)
class Pair:
    """One entry in both tables. `allowed` is by which share the two may differ."""

    name: str
    first_s: float
    second_s: float
    allowed: float

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second_s / self.first_s

    @property
    def distance(self) -> float:
        """The larger of the two over the smaller, so that half counts as much as double."""
        return max(self.ratio, 1 / self.ratio)

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than is allowed."""
        return self.distance <= 1 + self.allowed


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a segment costs beside its steps, in both tables: its dispatch, or a hand-over before it.

    It may be any fraction of a millisecond, and counts by what it makes of the step behind it.

    Attributes:
        step_s: that step.
        allowed: by which share that step may differ with it.
    """

    name: str
    first_s: float
    second_s: float
    step_s: float
    allowed: float

    @property
    def share(self) -> float:
        """By which the step behind it takes longer in one table than in the other."""
        return abs(self.first_s - self.second_s) / (self.step_s + min(self.first_s, self.second_s))

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than is allowed."""
        return self.share <= self.allowed


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two tables.

    Attributes:
        pairs: steps, encodes and decodes that both have, what differs the most first.
        overheads: dispatch, and the hand-overs that both have, what differs the most first.
        only_first, only_second: what one of them lacks.
        facts: what else differs, such as the device or a setting, in words.
    """

    pairs: tuple[Pair, ...]
    overheads: tuple[Overhead, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    facts: tuple[str, ...]

    @property
    def disagreeing(self) -> int:
        """How many pairs differ by more than is allowed."""
        return sum(not pair.agrees for pair in self.pairs)

    @property
    def disagreeing_overheads(self) -> int:
        """How many of them differ by more than is allowed."""
        return sum(not overhead.agrees for overhead in self.overheads)

    @property
    def median_distance(self) -> float:
        """Over all pairs; 1 where there are none."""
        return statistics.median(pair.distance for pair in self.pairs) if self.pairs else 1.0

    @property
    def max_distance(self) -> float:
        """Over all pairs; 1 where there are none."""
        return max((pair.distance for pair in self.pairs), default=1.0)


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds that are spent before `step`."""

    seconds: float
    step: StepEntry


def compare(first: TableDocument, second: TableDocument, floor: float = NOISE_FLOOR) -> Comparison:
    """Compare steps, encodes, decodes, dispatch and hand-overs.

    Args:
        first: a table.
        second: the one to compare it with.
        floor: a difference that is allowed whatever the CV.
    """
    ours, theirs = _entries(first), _entries(second)
    pairs = [
        Pair(name, ours[name].seconds, theirs[name].seconds, tolerance(ours[name].cv, theirs[name].cv, floor))
        for name in ours
        if name in theirs
    ]
    our_costs, their_costs = _costs(first), _costs(second)
    overheads = [
        _overhead(name, our_costs[name], their_costs[name], floor) for name in our_costs if name in their_costs
    ]
    return Comparison(
        tuple(sorted(pairs, key=lambda pair: -pair.distance)),
        tuple(sorted(overheads, key=lambda overhead: -overhead.share)),
        tuple(name for name in (*ours, *our_costs) if name not in theirs and name not in their_costs),
        tuple(name for name in (*theirs, *their_costs) if name not in ours and name not in our_costs),
        tuple(_differences(_facts(first), _facts(second))),
    )


def _overhead(name: str, ours: _Cost, theirs: _Cost, floor: float) -> Overhead:
    step_s = min(ours.step.seconds, theirs.step.seconds)
    return Overhead(name, ours.seconds, theirs.seconds, step_s, tolerance(ours.step.cv, theirs.step.cv, floor))


def _facts(document: TableDocument) -> dict[str, object]:
    told = {fact: getattr(document, fact) for fact in _FACTS}
    facts = {fact: _UNTOLD if value is None else value for fact, value in told.items()}
    return facts | {f"settings.{name}": value for name, value in flat_settings(document).items()}


def _differences(first: Mapping[str, object], second: Mapping[str, object]) -> Iterator[str]:
    for name in dict.fromkeys((*first, *second)):
        ours, theirs = first.get(name, _UNTOLD), second.get(name, _UNTOLD)
        if ours != theirs:
            yield f"{name}: {ours} / {theirs}"


def _entries(document: TableDocument) -> dict[str, Entry]:
    """By name, those that take time."""
    entries: Sequence[Entry] = (*document.step, *document.encode, *document.decode)
    return {label(entry): entry for entry in entries if entry.seconds > 0}


def _costs(document: TableDocument) -> dict[str, _Cost]:
    """Dispatch and hand-overs by name. Dispatch weighs the most before the shortest step."""
    shortest = min(document.step, key=lambda step: step.seconds)
    single = {(e.height, e.width, e.sp): e for e in document.step if e.batch == e.cfg == 1}
    costs = {"dispatch of a segment": _Cost(document.dispatch_seconds, shortest)}
    for move in document.hand_over:
        step = single.get((move.height, move.width, len(move.after)), shortest)
        costs[move_label(move)] = _Cost(move.seconds, step)
        # What the simulator goes by.
        costs[f"{move_label(move)}, between the segments"] = _Cost(move.between_seconds, step)
    return costs
