"""Times of a latency table that cannot be true, or that are worth a look: rules that need nothing but the table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

from tetriserve_backend.cli.table.findings import Entry, Finding, Severity, label, milliseconds, move_label
from tetriserve_backend.domain import image_tokens
from tetriserve_backend.latency_table.document import DecodeEntry, StepEntry, TableDocument
from tetriserve_profiling.hand_over import GOAL_FROM_TOKENS
from tetriserve_profiling.spread import tolerance

MAX_HAND_OVER_SHARE: Final = 0.005
"""Of a step: more than that for moving a latent is odd at `GOAL_FROM_TOKENS` and above."""
_MAX_EFFICIENCY, _MIN_SPEED_UP = 2.0, 0.1
"""Caches and memory that is short may give a little more than the ranks do, slow links much less; beyond this it is an
error of whoever measured."""

_Sized: TypeAlias = StepEntry | DecodeEntry
_Some = TypeVar("_Some", bound=_Sized)


def odd_times(document: TableDocument, cv_limit: float) -> Iterator[Finding]:
    """All that the rules find. `cv_limit` is the CV above which samples lie far apart."""
    yield from falling_with_tokens(document)
    yield from falling_with_batch(document)
    yield from odd_speed_ups(document)
    yield from large_spread(document, cv_limit)
    yield from dear_moves(document)


def falling_with_tokens(document: TableDocument) -> Iterator[Finding]:
    """More tokens that take less time than any fewer."""
    for entries in _grouped(document.step, lambda step: (step.batch, step.sp, step.cfg)):
        yield from _falls(entries, _tokens, "more tokens")
    yield from _falls(document.decode, _tokens, "more tokens")


def falling_with_batch(document: TableDocument) -> Iterator[Finding]:
    """More images that take less time than any fewer, and batches that take longer than their images one by one."""
    for entries in _grouped(document.step, lambda step: (step.height, step.width, step.sp, step.cfg)):
        yield from _falls(entries, lambda entry: entry.batch, "more images")
        single = min(entries, key=lambda entry: entry.batch)
        for entry in entries:
            ratio = entry.seconds / (entry.batch / single.batch * single.seconds)
            if ratio > 1 + _noise(entry, single):
                yield Finding(
                    Severity.WARNING,
                    label(entry),
                    f"{milliseconds(entry.seconds)} is {ratio:.2f} times {entry.batch // single.batch} × "
                    f"{milliseconds(single.seconds)}: one by one is faster",
                )


def odd_speed_ups(document: TableDocument) -> Iterator[Finding]:
    """Steps that gain more than their ranks can give, and wider ones that are slower.

    Each is compared with the step on one rank, and with the narrower ones whose guidance is split as its own is.
    """
    for entries in _grouped(document.step, lambda step: (step.height, step.width, step.batch)):
        single = [entry for entry in entries if entry.ranks == 1]
        for cfg in sorted({entry.cfg for entry in entries}):
            wider = [entry for entry in entries if entry.ranks > 1 and entry.cfg == cfg]
            yield from _odd_among([*single, *sorted(wider, key=lambda entry: entry.ranks)])


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
    """Hand-overs that weigh more against a step than they should. Small images have steps so short that any does."""
    for move in document.hand_over:
        if image_tokens(move.height, move.width) >= GOAL_FROM_TOKENS and move.share_of_step > MAX_HAND_OVER_SHARE:
            yield Finding(
                Severity.WARNING,
                move_label(move),
                f"{move.share_of_step:.2%} of a step, more than {MAX_HAND_OVER_SHARE:.1%}",
            )


def _grouped(steps: Iterable[StepEntry], key: Callable[[StepEntry], object]) -> list[list[StepEntry]]:
    groups: dict[object, list[StepEntry]] = {}
    for step in steps:
        groups.setdefault(key(step), []).append(step)
    return list(groups.values())


def _tokens(entry: _Sized) -> int:
    return image_tokens(entry.height, entry.width)


def _falls(entries: Sequence[_Some], size: Callable[[_Some], int], more: str) -> Iterator[Finding]:
    """Entries that take less time than a smaller one: any, since many small falls are a large one."""
    for large in sorted(entries, key=size):
        slower = [
            small
            for small in entries
            if size(small) < size(large) and large.seconds < small.seconds * (1 - _noise(large, small))
        ]
        if slower:
            small = max(slower, key=lambda entry: entry.seconds)
            text = (
                f"{milliseconds(large.seconds)} is less than {milliseconds(small.seconds)} of {label(small)}: "
                f"{more}, less time"
            )
            yield Finding(Severity.ERROR, label(large), text)


def _odd_among(steps: Sequence[StepEntry]) -> Iterator[Finding]:
    """Of steps of the same on ever more ranks. A level that was told to be slower is not told again."""
    first = level = steps[0]
    for index, wide in enumerate(steps[1:], start=1):
        gain = first.seconds / wide.seconds
        too_fast = next((narrow for narrow in steps[:index] if _gains_too_much(narrow, wide)), None)
        if gain > _MAX_EFFICIENCY * wide.ranks / first.ranks:
            yield _too_fast(Severity.ERROR, first, wide)
        elif gain < _MIN_SPEED_UP:
            yield _slower(Severity.ERROR, first, wide)
        elif too_fast is not None:
            yield _too_fast(Severity.WARNING, too_fast, wide)
        elif wide.seconds * (1 - _noise(level, wide)) > level.seconds:
            yield _slower(Severity.WARNING, level, wide)
            level = wide
        level = min(level, wide, key=lambda step: step.seconds)


def _gains_too_much(narrow: StepEntry, wide: StepEntry) -> bool:
    return narrow.seconds * narrow.ranks > wide.seconds * wide.ranks * (1 + _noise(narrow, wide))


def _too_fast(severity: Severity, narrow: StepEntry, wide: StepEntry) -> Finding:
    speed_up, ranks = narrow.seconds / wide.seconds, wide.ranks / narrow.ranks
    text = f"speed-up {speed_up:.2f} on {ranks:g} times the ranks, so more than they can give"
    return _odd_speed_up(severity, narrow, wide, text)


def _slower(severity: Severity, narrow: StepEntry, wide: StepEntry) -> Finding:
    text = f"the wider degree is slower (speed-up {narrow.seconds / wide.seconds:.2g})"
    return _odd_speed_up(severity, narrow, wide, text)


def _odd_speed_up(severity: Severity, narrow: StepEntry, wide: StepEntry, text: str) -> Finding:
    numbers = f"{milliseconds(narrow.seconds)} on {narrow.ranks} → {milliseconds(wide.seconds)} on {wide.ranks}"
    fix = "; fix: profile again" if severity is Severity.ERROR else ""
    return Finding(severity, label(wide), f"{numbers}: {text}{fix}")


def _noise(entry: _Sized, other: _Sized) -> float:
    return tolerance(entry.cv, other.cv)
