"""What a profile has measured so far, and the latency table that follows from it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tetriserve_backend.domain import LatencyTableError, SegmentKind
from tetriserve_backend.latency_table.work import Work
from tetriserve_profiling.hand_over import LatentMove, Move, MoveCost, MoveSample
from tetriserve_profiling.spread import Spread, spread
from tetriserve_profiling.stopwatch import Samples
from tetriserve_profiling.told import first_of
from tetriserve_profiling.work import KIND_NAMES, work_from_dict, work_to_dict

_CV_DIGITS = 4
_REASONS_TOLD = 6


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for samples to belong together.

    Attributes:
        build: name of the model's folder; tells one build of an embedded model from the next.
        settings: everything else that the times depend on, by name.
        guided: whether steps have a second pass for classifier-free guidance.
        shared_counts: what each sequence-parallel degree must divide besides the image tokens, by name.
    """

    model: str
    build: str
    device: str
    world_size: int
    dtype: str
    text_tokens: int
    software: Mapping[str, str]
    settings: Mapping[str, Any]
    guided: bool = False
    shared_counts: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Entry:
    seconds: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    memory_bytes: int | None = None


class Record:
    """Samples by entry, and the entries that cannot be had."""

    def __init__(self) -> None:
        self._entries: dict[Work, _Entry] = {}
        self._moves: dict[LatentMove, list[MoveSample]] = {}
        self.absent: dict[Work, str] = {}
        """Why, by entry."""

    def add(self, work: Work, samples: Samples) -> None:
        """Keep what a visit gave."""
        entry = self._entries.setdefault(work, _Entry())
        entry.seconds += samples.seconds
        entry.gaps_s += samples.gaps_s
        if samples.peak_memory_bytes is not None:
            entry.memory_bytes = max(entry.memory_bytes or 0, samples.peak_memory_bytes)

    def give_up(self, work: Work, reason: str) -> None:
        """An entry cannot be had; what was measured of it is dropped, since it cannot be relied on."""
        self._entries.pop(work, None)
        self.absent[work] = reason

    def add_move(self, one: LatentMove, sample: MoveSample) -> None:
        """Keep what a visit of a move gave."""
        self._moves.setdefault(one, []).append(sample)

    def drop_move(self, one: LatentMove) -> None:
        """A move cannot be had; what was measured of it cannot be relied on."""
        self._moves.pop(one, None)

    def counts(self) -> dict[Work, int]:
        """Samples of each entry."""
        return {work: len(entry.seconds) for work, entry in self._entries.items()}

    def move_counts(self) -> dict[LatentMove, int]:
        """Samples of each move."""
        return {one: len(samples) for one, samples in self._moves.items()}

    def move_costs(self) -> list[MoveCost]:
        """What the moves cost."""
        return [MoveCost.of(one, samples) for one, samples in self._moves.items()]

    def samples(self, work: Work) -> Sequence[float]:
        """Seconds of an entry that has some, one for each time that it was measured."""
        return self._entries[work].seconds

    def spread(self, work: Work) -> Spread:
        """Summary of the samples of an entry that has some."""
        return spread(self._entries[work].seconds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for a file that `from_dict` reads again."""
        return {
            "entries": [{**work_to_dict(work), **asdict(entry)} for work, entry in self._entries.items()],
            "absent": [{**work_to_dict(work), "reason": reason} for work, reason in self.absent.items()],
            "moves": [
                {**asdict(one), "samples": [asdict(sample) for sample in samples]}
                for one, samples in self._moves.items()
            ],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Record":
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError: it was something else.
        """
        record = cls()
        for item in raw["entries"]:
            entry = _Entry(item.pop("seconds"), item.pop("gaps_s"), item.pop("memory_bytes"))
            record._entries[work_from_dict(item)] = entry
        for item in raw["absent"]:
            reason = item.pop("reason")
            record.absent[work_from_dict(item)] = reason
        # Files from before moves were kept have none.
        for item in raw.get("moves", ()):
            move = Move(tuple(item["move"]["before"]), tuple(item["move"]["after"]))
            samples = [MoveSample(**sample) for sample in item["samples"]]
            record._moves[LatentMove(item["height"], item["width"], move)] = samples
        return record

    def document(self, identity: Identity, order: Sequence[Work], moves: Sequence[MoveCost] = ()) -> dict[str, Any]:
        """The latency table in its file format, entries in the given order.

        Keys beyond the format: `settings` and `hand_over` of the whole; `absent`, the entries that cannot be had, with
        the reason; `mean_seconds`, beside the median; `gap_seconds` and `memory_bytes` of entries, as `Samples` has
        them.

        Raises:
            LatencyTableError: nothing could be served with it; tells why what is absent could not be had.
        """
        self._check_usable()
        measured = [work for work in order if work in self._entries]
        document: dict[str, Any] = {
            "schema": "tetriserve.latency_table/1",
            "model": identity.model,
            "device": identity.device,
            "world_size": identity.world_size,
            "dtype": identity.dtype,
            "source": "measured",
            "text_tokens": identity.text_tokens,
            "guided": identity.guided,
            "software": dict(identity.software),
            "shared_counts": dict(identity.shared_counts),
        }
        if identity.settings:
            document["settings"] = dict(identity.settings)
        for kind, name in KIND_NAMES.items():
            document[name] = [self._table_entry(work) for work in measured if work.kind is kind]
        gaps_s = [entry["gap_seconds"] for entry in document["step"] if "gap_seconds" in entry]
        document["dispatch_seconds"] = max(0.0, statistics.median(gaps_s)) if gaps_s else 0.0
        if self.absent:
            document["absent"] = [{**work_to_dict(work), "reason": reason} for work, reason in self.absent.items()]
        if moves:
            document["hand_over"] = [move.to_dict() for move in moves]
        return document

    def _check_usable(self) -> None:
        """That some resolution has a step of one image and a decode."""
        single = [work for work in self._entries if work.batch == 1]
        steps = {(work.height, work.width) for work in single if work.kind is SegmentKind.DENOISE}
        if steps & {(work.height, work.width) for work in single if work.kind is SegmentKind.DECODE}:
            return
        reasons = [f"{work}: {reason}" for work, reason in self.absent.items() if work.batch == 1]
        raise LatencyTableError(
            "no resolution has both a step of one image and a decode, so that nothing could be served: "
            f"{'; '.join(first_of(reasons, _REASONS_TOLD))}; fix: profile smaller resolutions, or on more memory"
        )

    def _table_entry(self, work: Work) -> dict[str, Any]:
        entry = self._entries[work]
        summary = self.spread(work)
        keys = work_to_dict(work)
        del keys["kind"]
        if keys.get("cfg") == 1:
            del keys["cfg"]
        values: dict[str, Any] = {"seconds": summary.seconds, "mean_seconds": summary.mean_s}
        values |= {"cv": round(summary.cv, _CV_DIGITS), "samples": summary.samples}
        if work.kind is SegmentKind.DENOISE and entry.gaps_s:
            values["gap_seconds"] = statistics.median(entry.gaps_s)
        if entry.memory_bytes is not None:
            values["memory_bytes"] = entry.memory_bytes
        return {**keys, **values}
