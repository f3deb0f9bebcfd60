"""Which steps and decodes a latency table should have, and which of them are missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tetriserve_backend.cli.table.findings import Finding, Severity
from tetriserve_backend.domain import image_tokens
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.latency_table.document import TableDocument
from tetriserve_backend.latency_table.work import Work, decode_work, step_work
from tetriserve_profiling.schedule import Mode

_FIX = "fix: profile it, or leave it out of the configuration"


class Demand(Enum):
    """Who wants the degrees that are expected: the world that has groups of them, a configuration, or a person."""

    WORLD = "world"
    CONFIGURATION = "configuration"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the table should hold.

    Attributes:
        resolutions: (height, width) in pixels.
        degrees: ranks that share a step, in every way in which a model may share it.
        batches: images that share a step.
        demand: who wants these degrees.
        shared_counts: what each sequence-parallel degree must divide, by name, besides the image tokens; None where
            that is not known, so that the model may not be able to run at a degree that the table has nowhere.
    """

    resolutions: tuple[tuple[int, int], ...]
    degrees: tuple[int, ...]
    batches: tuple[int, ...]
    demand: Demand = Demand.WORLD
    shared_counts: Mapping[str, int] | None = None


def expectation_of(document: TableDocument, shared_counts: Mapping[str, int] | None = None) -> Expectation:
    """That the table is a whole grid of what it has anywhere, at all degrees that its ranks have groups for."""
    own = {entry.ranks for entry in document.step}
    return Expectation(
        tuple(dict.fromkeys((e.height, e.width) for e in document.step)),
        tuple(sorted(own.union(usable_degrees(document.world_size)))),
        tuple(sorted({e.batch for e in document.step})),
        shared_counts=shared_counts,
    )


def missing_shapes(document: TableDocument, expected: Expectation) -> Iterator[Finding]:
    """What is expected and the table lacks: ways to share a step that it has nowhere, then steps, then decodes."""
    possible = _possible_modes(document, expected)
    told = {Mode(entry.sp, entry.cfg) for entry in document.step}
    told |= {Mode(entry.sp, entry.cfg) for entry in document.absent if entry.kind == "step"}
    yield from _impossible_degrees(expected, possible)
    for mode in possible:
        if mode not in told:
            yield _missing_mode(mode, document, expected)
    yield from _missing_steps(document, expected, [mode for mode in possible if mode in told])
    decodes = {(e.height, e.width) for e in document.decode}
    for shape in expected.resolutions:
        if shape not in decodes:
            yield Finding(Severity.WARNING, str(decode_work(*shape)), "missing: its time is interpolated or refused")


def _possible_modes(document: TableDocument, expected: Expectation) -> list[Mode]:
    """In which ways a step of some resolution can be shared by the expected numbers of ranks, as far as is known."""
    modes = [Mode(ranks) for ranks in expected.degrees]
    if document.is_guided:
        modes += [Mode(ranks // 2, cfg=2) for ranks in expected.degrees if ranks % 2 == 0]
    counts = (expected.shared_counts or {}).values()
    tokens = [image_tokens(*shape) for shape in expected.resolutions]
    return [
        mode
        for mode in modes
        if all(count % mode.sp == 0 for count in counts) and any(count % mode.sp == 0 for count in tokens)
    ]


def _impossible_degrees(expected: Expectation, possible: Sequence[Mode]) -> Iterator[Finding]:
    """What a person wants and cannot have."""
    if expected.demand is not Demand.PERSON:
        return
    counts = [f"{count} {name}" for name, count in (expected.shared_counts or {}).items()]
    for ranks in expected.degrees:
        if all(mode.ranks != ranks for mode in possible):
            divided = ", ".join([*counts, "the image tokens of a resolution"])
            text = f"no step can be shared so, as that must divide {divided}; fix: leave it out of --degrees"
            yield Finding(Severity.ERROR, f"{ranks} rank(s)", text)


def _missing_mode(mode: Mode, document: TableDocument, expected: Expectation) -> Finding:
    """What the table has nowhere at all. That the model can run at it is known too if it runs at a multiple."""
    where = f"{mode} on {mode.ranks} rank(s)"
    is_known = expected.shared_counts is not None or any(entry.sp % mode.sp == 0 for entry in document.step)
    if expected.demand is Demand.PERSON and (is_known or all(e.ranks != mode.ranks for e in document.step)):
        return Finding(Severity.ERROR, where, "no entry at all; fix: profile it, or leave it out of --degrees")
    if not is_known:
        text = (
            "no entry at all: no step is shared so; right only if the model cannot run at it, which is not known here"
        )
        return Finding(Severity.WARNING, where, text)
    if expected.demand is Demand.WORLD:
        return Finding(Severity.WARNING, where, "no entry at all, though the model can run at it: no step is shared so")
    text = "no entry at all, though the model can run at it; fix: profile it, or name with --degrees what must be there"
    return Finding(Severity.ERROR, where, text)


def _missing_steps(document: TableDocument, expected: Expectation, modes: Sequence[Mode]) -> Iterator[Finding]:
    have = {step_work(e.height, e.width, e.batch, e.sp, e.cfg) for e in document.step}
    absent = {step_work(e.height, e.width, e.batch, e.sp, e.cfg): e.reason for e in document.absent if e.kind == "step"}
    # Whatever is asked for, a request must be able to go on when ranks are lost.
    wanted = dict.fromkeys([(1, Mode(1)), *((batch, mode) for batch in expected.batches for mode in modes)])
    for height, width in expected.resolutions:
        for batch, mode in wanted:
            step = step_work(height, width, batch, mode.sp, mode.cfg)
            if step not in have and image_tokens(height, width) % mode.sp == 0:
                yield _missing_step(step, absent.get(step))


def _missing_step(step: Work, reason: str | None) -> Finding:
    """`reason`: why the profile left it out, if it did."""
    if step.degree == step.batch == 1:
        why = f"left out by the profile: {reason}" if reason else "missing"
        return Finding(Severity.ERROR, str(step), f"{why}: each resolution must be able to run on one rank; {_FIX}")
    if reason:
        return Finding(Severity.WARNING, str(step), f"left out by the profile: {reason}")
    if step.batch > 1:
        return Finding(Severity.WARNING, str(step), "missing: such a batch is never run")
    return Finding(Severity.ERROR, str(step), f"missing; {_FIX}")
