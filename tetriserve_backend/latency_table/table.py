"""The latency table: seconds per step, encode and decode, looked up in constant time."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, LatencyTableError, SegmentKind, image_tokens
from tetriserve_backend.latency_table.curve import TokenCurve
from tetriserve_backend.latency_table.document import StepEntry, TableDocument, dump_document, parse_document, refusal
from tetriserve_backend.latency_table.moves import Moves
from tetriserve_backend.latency_table.remedy import profile_command
from tetriserve_backend.latency_table.step_times import StepTimes
from tetriserve_backend.latency_table.work import Work, decode_work, encode_work, step_work


class LatencyTable:
    """What one model costs on one kind of machine; immutable.

    A shape that was not profiled takes the time of its latent tokens on the line between its profiled
    neighbours; a shape with fewer or more tokens than any profiled one is refused. Every answer is
    cached per shape, because schedulers ask in their innermost loops.
    """

    def __init__(self, document: TableDocument, origin: str) -> None:
        """Index a checked document; use `load` or `from_dict` to get one."""
        self._document = document
        self._origin = origin
        self.model = document.model
        self.device = document.device
        self.world_size = document.world_size
        self.dtype = document.dtype
        self.source = document.source
        self.dispatch_s = document.dispatch_seconds
        self.text_tokens = document.text_tokens
        """Length of the text stream that it was measured with; None where the table does not tell."""
        self.shared_counts: Mapping[str, int] | None = document.shared_counts
        """What each sequence-parallel degree must divide besides image tokens; None where the table does not tell."""
        self.is_guided = document.is_guided
        """Whether its steps are those of guided requests; others may take half as long."""
        self.settings: Mapping[str, Any] = document.settings
        """What else the times depend on, as far as the table tells."""
        self.resolutions = tuple(
            sorted({(e.height, e.width) for e in document.step if e.batch == 1}, key=lambda s: (image_tokens(*s), s))
        )
        """Profiled (height, width) pairs, fewest tokens first."""
        self._steps = StepTimes(document.step)
        self._modes: dict[tuple[int, int, int, int], tuple[float, int]] = {}
        self._decode_curve = TokenCurve((image_tokens(e.height, e.width), e.seconds) for e in document.decode)
        self._decode_cache = {(e.height, e.width): e.seconds for e in document.decode}
        self._encode_s = next(e.seconds for e in document.encode if e.batch == 1)
        self._moves = Moves(document)
        self._degrees_cache: dict[tuple[int, int], tuple[int, ...]] = {}
        self._batches_cache: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._min_tokens = max(self._steps.min_tokens, self._decode_curve.min_tokens)
        self._max_tokens = min(self._steps.max_tokens, self._decode_curve.max_tokens)
        if self._min_tokens > self._max_tokens:
            fix = "measure both, which `tetriserve profile` does"
            raise refusal(origin, "decode", "expected entries for the resolutions of step", fix)

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read and check a `*.latency.json`.

        Raises:
            LatencyTableError: the file is missing, not JSON, or breaks the format; names file and field.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            fix = "name a file that is there, or make one with `tetriserve profile`"
            raise refusal(str(path), "", f"cannot be read: {error.strerror}", fix) from error
        except (ValueError, RecursionError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            fix = "name a file that `tetriserve profile` wrote"
            raise refusal(str(path), "", f"expected JSON: {problem}", fix) from error
        return cls.from_dict(raw, origin=str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], origin: str) -> "LatencyTable":
        """Check parsed JSON; `origin` is what errors call it.

        Raises:
            LatencyTableError: the format is broken; names origin and field.
        """
        return cls(parse_document(raw, origin), origin)

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values, unknown keys included."""
        return dump_document(self._document)

    def restricted_to(self, degrees: Iterable[int], ranks: int) -> "LatencyTable":
        """The same table without the steps at other sequence-parallel degrees or on more ranks.

        Args:
            degrees: those that are kept.
            ranks: how many there are; a split of the guidance takes twice as many as its degree.

        Raises:
            LatencyTableError: nothing of one image at a time is left.
        """
        wanted = set(degrees)
        step = [entry for entry in self._document.step if entry.sp in wanted and entry.ranks <= ranks]
        if not any(entry.batch == 1 for entry in step):
            profiled = sorted({entry.sp for entry in self._document.step})
            problem = f"has the degrees {profiled}; expected one of {sorted(wanted)}"
            raise refusal(self._origin, "step", problem, profile_command(self._document, self._origin, degrees=wanted))
        return LatencyTable(self._document.model_copy(update={"step": step}), self._origin)

    def corrected(self, factor_of: Callable[[Work], float], measured: Iterable[Work] = ()) -> "LatencyTable":
        """The same table with each of its times multiplied by a factor, dispatch excepted.

        Args:
            factor_of: the factor of each entry, more than 0.
            measured: steps at shapes between the profiled ones whose factors are known: these get entries of
                their own, as shapes without any lie on the lines between their neighbours.

        Raises:
            LatencyTableError: `measured` names something that this table cannot tell the time of.
        """
        step = [
            entry.model_copy(update={"seconds": entry.seconds * factor_of(_step(entry))})
            for entry in self._document.step
        ]
        for work in measured:
            if not self._steps.is_profiled(work):
                entry = StepEntry(
                    height=work.height,
                    width=work.width,
                    batch=work.batch,
                    sp=work.sp,
                    cfg=work.cfg_degree,
                    seconds=self.seconds(work) * factor_of(work),
                )
                step.append(entry)
        encode_factor = factor_of(encode_work())
        encode = [e.model_copy(update={"seconds": e.seconds * encode_factor}) for e in self._document.encode]
        decode = [
            e.model_copy(update={"seconds": e.seconds * factor_of(decode_work(e.height, e.width))})
            for e in self._document.decode
        ]
        changes = {"step": step, "encode": encode, "decode": decode}
        return LatencyTable(self._document.model_copy(update=changes), self._origin)

    def hand_over_s(self, degree: int, *, from_outside: bool) -> float:
        """Seconds that `degree` ranks wait for what a request has elsewhere, beside the dispatch of their segment.

        The mean of the profiled moves to so many ranks, or of all such moves where there are none; 0 where the table
        tells of no moves.

        Args:
            degree: ranks of the segment.
            from_outside: none of them has it, rather than some.
        """
        return self._moves.mean_s(degree, from_outside=from_outside)

    @property
    def origin(self) -> str:
        """What errors call it: its file, if it came from one."""
        return self._origin

    @property
    def works(self) -> tuple[Work, ...]:
        """What this table has an entry for."""
        decode = (decode_work(entry.height, entry.width) for entry in self._document.decode)
        return (*map(_step, self._document.step), encode_work(), *decode)

    def save(self, path: str | Path) -> None:
        """Write the table so that a reader sees the old file or the whole new one, never a part."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        scratch.replace(target)

    def step_s(self, height: int, width: int, degree: int, batch: int = 1) -> float:
        """Seconds of one denoising step of `batch` images of this shape on `degree` ranks.

        Raises:
            LatencyTableError: the shape lies outside the profiled range, or degree or batch was not profiled there.
        """
        return self._mode(height, width, degree, batch)[0]

    def seconds(self, work: Work) -> float:
        """Seconds of `work`, with its guidance split as it says.

        Raises:
            LatencyTableError: as `step_s` and `decode_s`, or its guidance was not profiled with that split.
        """
        if work.kind is SegmentKind.ENCODE:
            return self.encode_s()
        if work.kind is SegmentKind.DECODE:
            return self.decode_s(work.height, work.width)
        self.check_resolution(work.height, work.width)
        seconds = self._steps.seconds(work.height, work.width, work.degree, work.batch, work.cfg_degree)
        if seconds is None:
            raise self._no_step(work.height, work.width, work.degree, work.batch)
        return seconds

    def cfg_degree(self, height: int, width: int, degree: int, batch: int = 1) -> int:
        """Into how many parts that step's guidance is best split over the ranks: 1 or 2.

        Raises:
            LatencyTableError: as `step_s`.
        """
        return self._mode(height, width, degree, batch)[1]

    def batches(self, height: int, width: int, degree: int) -> tuple[int, ...]:
        """Batch sizes that were profiled around this shape on `degree` ranks, ascending.

        Raises:
            LatencyTableError: the shape lies outside the profiled range.
        """
        key = (height, width, degree)
        batches = self._batches_cache.get(key)
        if batches is None:
            self.check_resolution(height, width)
            batches = self._batches_cache[key] = self._steps.batches(height, width, degree)
        return batches

    def _mode(self, height: int, width: int, degree: int, batch: int) -> tuple[float, int]:
        """Seconds per step and the best split of the guidance."""
        key = (height, width, degree, batch)
        mode = self._modes.get(key)
        if mode is None:
            self.check_resolution(height, width)
            mode = self._steps.best(height, width, degree, batch)
            if mode is None:
                raise self._no_step(height, width, degree, batch)
            self._modes[key] = mode
        return mode

    def _no_step(self, height: int, width: int, degree: int, batch: int) -> LatencyTableError:
        around = self._steps.around(height, width)
        problem = f"no step of {height}x{width} with degree = {degree}, batch = {batch}"
        fix = profile_command(
            self._document, self._origin, resolutions=[(height, width)], degrees=[degree], batches=[batch]
        )
        return refusal(self._origin, "step", f"{problem}; profiled (degree, batch): {around}", fix)

    def encode_s(self) -> float:
        """Seconds of the text encoders on one rank: once for a segment, however many requests share its prompt."""
        return self._encode_s

    def decode_s(self, height: int, width: int) -> float:
        """Seconds of the VAE for one image of this shape on one rank.

        Raises:
            LatencyTableError: the shape lies outside the profiled range.
        """
        seconds = self._decode_cache.get((height, width))
        if seconds is None:
            self.check_resolution(height, width)
            seconds = self._decode_cache[height, width] = self._decode_curve.seconds_at(image_tokens(height, width))
        return seconds

    def degrees(self, height: int, width: int) -> tuple[int, ...]:
        """Degrees that this shape may run at, ascending: profiled around it, and dividing its latent tokens.

        Raises:
            LatencyTableError: the shape lies outside the profiled range.
        """
        degrees = self._degrees_cache.get((height, width))
        if degrees is None:
            self.check_resolution(height, width)
            degrees = self._degrees_cache[height, width] = self._steps.degrees(height, width)
        return degrees

    def fastest_degree(self, height: int, width: int) -> int:
        """The degree with the shortest step of this shape; the smallest of equals."""
        return min(self.degrees(height, width), key=lambda sp: (self.step_s(height, width, sp), sp))

    def fastest_step_s(self, height: int, width: int) -> float:
        """Seconds of one step of this shape at its fastest degree."""
        return self.step_s(height, width, self.fastest_degree(height, width))

    def speed_up(self, height: int, width: int) -> float:
        """How many times as fast as on one rank a step of this shape is at its fastest degree; 1 or more."""
        return self.step_s(height, width, 1) / self.fastest_step_s(height, width)

    def check_one_rank(self) -> None:
        """Refuse a table with a resolution that cannot run on one rank, as it must whatever ranks are left.

        Raises:
            LatencyTableError: names the first such resolution.
        """
        for height, width in self.resolutions:
            if 1 not in self.degrees(height, width):
                problem = f"{height}x{width}: expected an entry with sp = 1, batch = 1, since ranks may be lost"
                around = self._steps.around(height, width)
                fix = profile_command(self._document, self._origin, degrees=[1], batches=[1])
                raise refusal(self._origin, "step", f"{problem}; profiled (degree, batch): {around}", fix)

    def check_resolution(self, height: int, width: int) -> None:
        """Refuse a shape that this table cannot tell the time of.

        Raises:
            LatencyTableError: a side is no positive multiple of 16, or the latent tokens lie outside the
                profiled range; the message names the allowed range in tokens and in pixels.
        """
        side = PIXELS_PER_TOKEN_SIDE
        if height <= 0 or width <= 0 or height % side or width % side:
            allowed = f"positive multiples of {side} pixels"
            raise LatencyTableError(
                f"latency table {self._origin}: {height}x{width}: expected height and width to be {allowed}", allowed
            )
        tokens, low, high = image_tokens(height, width), self._min_tokens, self._max_tokens
        if not low <= tokens <= high:
            allowed = f"{low} to {high} (height times width from {low * side**2} to {high * side**2} pixels)"
            problem = f"{height}x{width} has {tokens} latent tokens; expected {allowed}"
            fix = profile_command(self._document, self._origin, resolutions=[(height, width)])
            raise refusal(self._origin, "step", problem, fix, f"latent tokens from {allowed}")


def _step(entry: StepEntry) -> Work:
    return step_work(entry.height, entry.width, entry.batch, entry.sp, entry.cfg)
