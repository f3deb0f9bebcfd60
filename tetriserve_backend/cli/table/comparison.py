"""Two latency tables entry by entry."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.table.findings import Entry, label
from tetriserve_backend.cli.table.flat_settings import flat_settings
from tetriserve_backend.latency_table.document import TableDocument
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
class Comparison:
    """Two tables.

    Attributes:
        pairs: what both have, what differs the most first.
        only_first, only_second: what one of them lacks.
        facts: what else differs, such as the device or a setting, in words.
    """

    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    facts: tuple[str, ...]

    @property
    def disagreeing(self) -> int:
        """How many pairs differ by more than is allowed."""
        return sum(not pair.agrees for pair in self.pairs)

    @property
    def median_distance(self) -> float:
        """Over all pairs; 1 where there are none."""
        return statistics.median(pair.distance for pair in self.pairs) if self.pairs else 1.0

    @property
    def max_distance(self) -> float:
        """Over all pairs; 1 where there are none."""
        return max((pair.distance for pair in self.pairs), default=1.0)


def compare(first: TableDocument, second: TableDocument, floor: float = NOISE_FLOOR) -> Comparison:
    """Compare steps, encodes and decodes; `floor` is a difference that is allowed whatever the CV."""
    ours, theirs = _entries(first), _entries(second)
    pairs = [
        Pair(name, ours[name].seconds, theirs[name].seconds, tolerance(ours[name].cv, theirs[name].cv, floor))
        for name in ours
        if name in theirs
    ]
    return Comparison(
        tuple(sorted(pairs, key=lambda pair: -pair.distance)),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        tuple(_differences(_facts(first), _facts(second))),
    )


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
