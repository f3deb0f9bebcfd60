"""What is measured, and in which order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import ConfigurationError, image_tokens
from tetriserve_backend.latency_table.work import Work, decode_work, encode_work, mode_label, step_work
from tetriserve_profiling.settings import ProfileSettings


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to share a step: sequence-parallel degree times parts of the guidance."""

    sp: int
    cfg: int = 1

    @property
    def ranks(self) -> int:
        """How many ranks that takes."""
        return self.sp * self.cfg

    def __str__(self) -> str:
        """As entries are called."""
        return mode_label(self.sp, self.cfg)


Modes = Callable[[int], Sequence[Mode]]
"""The ways in which the executor can share a step of that many image tokens, narrowest first."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Measure `work` until it has `target` samples."""

    work: Work
    target: int


def list_work(settings: ProfileSettings, modes: Modes) -> list[Work]:
    """Everything that the settings ask for and the executor can run, small shapes first.

    Raises:
        ConfigurationError: a degree was asked for at which no resolution can run.
    """
    _check_degrees(settings, modes)
    shapes = sorted(set(settings.resolutions), key=lambda shape: (image_tokens(*shape), shape))
    batches = sorted(set(settings.batches))
    # The requests of an encode share their prompt, so that its batch is always one.
    work: list[Work] = [encode_work()]
    for height, width in shapes:
        for mode in modes(image_tokens(height, width)):
            if settings.degrees is None or mode.ranks in settings.degrees:
                work += [step_work(height, width, batch, mode.sp, mode.cfg) for batch in batches]
        work.append(decode_work(height, width))
    return work


def visits(work: Sequence[Work], settings: ProfileSettings, have: Mapping[Work, int]) -> Iterator[Visit]:
    """Visits to all entries in turn, round after round, every other one backwards.

    Args:
        work: what to measure.
        settings: repeats and rounds.
        have: samples that are already there; a visit that would add none is left out.
    """
    # Two samples at least, since only the second has another right before it: that is what dispatch is measured by.
    rounds = max(1, min(settings.rounds, settings.repeats // 2))
    for number in range(1, rounds + 1):
        target = -(-settings.repeats * number // rounds)
        for one in work if number % 2 else reversed(work):
            if have.get(one, 0) < target:
                yield Visit(one, target)


def _check_degrees(settings: ProfileSettings, modes: Modes) -> None:
    possible = {mode.ranks for shape in settings.resolutions for mode in modes(image_tokens(*shape))}
    wrong = sorted(set(settings.degrees or ()) - possible)
    if wrong:
        raise ConfigurationError(
            f"degrees: {', '.join(map(str, wrong))}: the model cannot run at that on these ranks; "
            f"allowed: {', '.join(map(str, sorted(possible)))}"
        )
