"""What is odd about a latency table: rules that need nothing but the table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TypeAlias

from tetriserve_backend.domain import image_tokens
from tetriserve_backend.latency_table.document import (
    AbsentEntry,
    DecodeEntry,
    EncodeEntry,
    MoveEntry,
    StepEntry,
    TableDocument,
)
from tetriserve_backend.latency_table.work import decode_work, encode_work, step_work
from tetriserve_profiling.spread import tolerance

MAX_HAND_OVER_SHARE = 0.005
"""Of a step: more than that for moving a latent is odd from 512×512 on."""


class Severity(str, Enum):
    """ERROR: plans made with the table will be wrong, or shapes refused. WARNING: worth a look, may be the truth."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is odd, with its numbers."""

    severity: Severity
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the table should hold.

    Attributes:
        resolutions: (height, width) in pixels.
        degrees: ranks that share a step; each where it divides the tokens of a shape.
        batches: images that share a step.
    """

    resolutions: tuple[tuple[int, int], ...]
    degrees: tuple[int, ...]
    batches: tuple[int, ...]


Entry: TypeAlias = StepEntry | EncodeEntry | DecodeEntry


def label(entry: Entry | AbsentEntry) -> str:
    """An entry, or what could not be had, in words."""
    if isinstance(entry, EncodeEntry) or (isinstance(entry, AbsentEntry) and entry.kind == "encode"):
        return str(encode_work(entry.batch))
    if isinstance(entry, DecodeEntry) or (isinstance(entry, AbsentEntry) and entry.kind == "decode"):
        return str(decode_work(entry.height, entry.width))
    return str(step_work(entry.height, entry.width, entry.batch, entry.sp, entry.cfg))


def move_label(move: MoveEntry) -> str:
    """A hand-over in words."""
    return f"hand-over {move.height}x{move.width} from {move.before} to {move.after}"


def milliseconds(seconds: float) -> str:
    """For people."""
    return f"{1e3 * seconds:.4g} ms"


def expectation_of(document: TableDocument) -> Expectation:
    """That the table is a whole grid of what it has anywhere."""
    return Expectation(
        tuple(dict.fromkeys((e.height, e.width) for e in document.step)),
        tuple(sorted({e.ranks for e in document.step})),
        tuple(sorted({e.batch for e in document.step})),
    )


def find_all(document: TableDocument, expected: Expectation, cv_limit: float) -> list[Finding]:
    """Every finding, errors first."""
    found = [
        *missing_shapes(document, expected),
        *unused_degrees(document),
        *falling_with_tokens(document),
        *falling_with_batch(document),
        *odd_speed_ups(document),
        *large_spread(document, cv_limit),
        *dear_moves(document),
    ]
    return sorted(found, key=lambda finding: finding.severity is Severity.WARNING)


def missing_shapes(document: TableDocument, expected: Expectation) -> Iterator[Finding]:
    """Entries that the configuration allows and the table lacks; without one rank a shape cannot be served at all."""
    have = {(e.height, e.width, e.batch, e.ranks) for e in document.step}
    absent = {(e.height, e.width, e.batch, e.sp * e.cfg): e.reason for e in document.absent if e.kind == "step"}
    for height, width in expected.resolutions:
        for batch in expected.batches:
            for ranks in expected.degrees:
                key = (height, width, batch, ranks)
                if key in have or image_tokens(height, width) % ranks:
                    continue
                where = f"step {height}x{width} batch {batch} on {ranks} rank(s)"
                if key in absent:
                    yield Finding(Severity.WARNING, where, f"left out by the profile: {absent[key]}")
                elif batch > 1:
                    yield Finding(Severity.WARNING, where, "missing: such a batch is never run")
                else:
                    yield Finding(
                        Severity.ERROR, where, "missing; fix: profile it, or leave it out of the configuration"
                    )
        if (height, width, 1, 1) not in have:
            yield Finding(
                Severity.ERROR,
                f"step {height}x{width} batch 1 sp 1",
                "missing: a resolution that cannot run on one rank is refused by the scheduler",
            )
        if (height, width) not in {(e.height, e.width) for e in document.decode}:
            yield Finding(Severity.WARNING, f"decode {height}x{width}", "missing: its time is interpolated or refused")


def unused_degrees(document: TableDocument) -> Iterator[Finding]:
    """Powers of two up to the world's size that the table has nowhere."""
    have = {entry.ranks for entry in document.step}
    ranks = 1
    while ranks <= document.world_size:
        if ranks not in have:
            text = "no entry at all: a step is never shared by that many; right if the model's heads forbid it"
            yield Finding(Severity.WARNING, f"{ranks} rank(s)", text)
        ranks *= 2


def falling_with_tokens(document: TableDocument) -> Iterator[Finding]:
    """More tokens that take less time."""
    curves: dict[object, list[StepEntry | DecodeEntry]] = {}
    for step in document.step:
        curves.setdefault((step.batch, step.sp, step.cfg), []).append(step)
    curves["decode"] = list(document.decode)
    for entries in curves.values():
        entries.sort(key=lambda entry: image_tokens(entry.height, entry.width))
        for small, large in pairwise(entries):
            same = image_tokens(small.height, small.width) == image_tokens(large.height, large.width)
            if not same and _is_less(large, small):
                yield _fall(large, small, "more tokens")


def falling_with_batch(document: TableDocument) -> Iterator[Finding]:
    """More images that take less time, and batches that take longer than their images one by one."""
    groups: dict[object, list[StepEntry]] = {}
    for entry in document.step:
        groups.setdefault((entry.height, entry.width, entry.sp, entry.cfg), []).append(entry)
    for entries in groups.values():
        entries.sort(key=lambda entry: entry.batch)
        for small, large in pairwise(entries):
            if _is_less(large, small):
                yield _fall(large, small, "more images")
        single = entries[0]
        for entry in entries[1:]:
            ratio = entry.seconds / (entry.batch / single.batch * single.seconds)
            if ratio > 1 + _noise(entry, single):
                yield Finding(
                    Severity.WARNING,
                    label(entry),
                    f"{milliseconds(entry.seconds)} is {ratio:.2f} times {entry.batch // single.batch} × "
                    f"{milliseconds(single.seconds)}: one by one is faster",
                )


def odd_speed_ups(document: TableDocument) -> Iterator[Finding]:
    """Degrees that gain more than their ranks can give, and wider ones that are slower."""
    groups: dict[object, list[StepEntry]] = {}
    for entry in document.step:
        groups.setdefault((entry.height, entry.width, entry.batch, entry.cfg), []).append(entry)
    for entries in groups.values():
        entries.sort(key=lambda entry: entry.ranks)
        for narrow, wide in pairwise(entries):
            speed_up, ranks = narrow.seconds / wide.seconds, wide.ranks / narrow.ranks
            numbers = f"{milliseconds(narrow.seconds)} on {narrow.ranks} → {milliseconds(wide.seconds)} on {wide.ranks}"
            if speed_up > ranks * (1 + _noise(narrow, wide)):
                text = f"{numbers}: speed-up {speed_up:.2f} on {ranks:g} times the ranks, so more than they can give"
                yield Finding(Severity.WARNING, label(wide), text)
            elif speed_up < 1 - _noise(narrow, wide):
                text = f"{numbers}: the wider degree is slower (speed-up {speed_up:.2f})"
                yield Finding(Severity.WARNING, label(wide), text)


def large_spread(document: TableDocument, limit: float) -> Iterator[Finding]:
    """Entries whose samples lie far apart."""
    entries: Sequence[Entry] = (*document.step, *document.encode, *document.decode)
    for entry in entries:
        if entry.cv is not None and entry.cv > limit:
            yield Finding(
                Severity.WARNING,
                label(entry),
                f"cv {entry.cv:.1%} of {milliseconds(entry.seconds)}, more than {limit:.1%}; "
                "fix: profile again on a quiet machine, with more --repeats",
            )


def dear_moves(document: TableDocument) -> Iterator[Finding]:
    """Hand-overs that weigh more against a step than they should."""
    for move in document.hand_over:
        if move.share_of_step > MAX_HAND_OVER_SHARE:
            yield Finding(
                Severity.WARNING,
                move_label(move),
                f"{move.share_of_step:.2%} of a step, more than {MAX_HAND_OVER_SHARE:.1%}",
            )


def _is_less(entry: StepEntry | DecodeEntry, than: StepEntry | DecodeEntry) -> bool:
    return entry.seconds < than.seconds * (1 - _noise(entry, than))


def _fall(large: StepEntry | DecodeEntry, small: StepEntry | DecodeEntry, what: str) -> Finding:
    text = (
        f"{milliseconds(large.seconds)} is less than {milliseconds(small.seconds)} of {label(small)}: {what}, less time"
    )
    return Finding(Severity.ERROR, label(large), text)


def _noise(entry: StepEntry | DecodeEntry, other: StepEntry | DecodeEntry) -> float:
    return tolerance(entry.cv, other.cv)
