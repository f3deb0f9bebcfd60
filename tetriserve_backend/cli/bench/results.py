"""Where a benchmark keeps what it has done, so that it can be stopped at any time and go on later."""

import contextlib
import hashlib
import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tetriserve_backend.cli.bench.spec import BenchSpec
from tetriserve_backend.cli.summary_files import BENCHMARK_NOTE, read_summary
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.sweep import SweepSpec, Variant
from tetriserve_backend.simulator.trace import TraceError, TraceRequest, read_trace, write_trace
from tetriserve_backend.simulator.workload import WorkloadSpec, generate

_WAY_OUT = "use --fresh or another --out"


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One policy on one trace; `cell` numbers the workload within the grid."""

    cell: int
    workload: WorkloadSpec
    variant: Variant

    @property
    def cell_name(self) -> str:
        """Of the trace, and in front of each request's id on the server."""
        return f"c{self.cell:03d}"

    @property
    def name(self) -> str:
        """Of the run's files."""
        return f"{self.cell_name}.{self.variant.name}"


def runs_of(grid: SweepSpec) -> Iterator[BenchRun]:
    """All runs, policy by policy."""
    for variant in grid.variants:
        for number, workload in enumerate(grid.cells()):
            yield BenchRun(number, workload, variant)


class ResultFolder:
    """The folder of one benchmark.

    A run is done when its summary is there: it is written last, and whole or not at all.

    Args:
        path: of the folder.
        table_is_given: whether its latency table comes from a file, or is measured.
    """

    def __init__(self, path: Path, *, table_is_given: bool = False) -> None:
        self.path = path
        self._table_name = f"{'given' if table_is_given else 'measured'}.latency.json"

    def claim(self, spec: BenchSpec, *, fresh: bool) -> None:
        """Make the folder, or go on in it.

        Args:
            spec: what it will hold.
            fresh: throw away what is there.

        Raises:
            ConfigurationError: it holds results of another benchmark, of a latency table that has changed since, or of
                nobody knows what, such as a sweep's, whose names are the same; these are never thrown away.
            OSError: it cannot be written.
        """
        note, wanted = self.path / BENCHMARK_NOTE, json.loads(spec.model_dump_json(by_alias=True))
        if spec.latency_table is not None:
            wanted["latency_table_sha256"] = _digest(Path(spec.latency_table))
        if note.exists() and not fresh:
            held = _read_note(note)
            other = ", ".join(name for name in sorted({*held, *wanted}) if held.get(name) != wanted.get(name))
            if other:
                raise ConfigurationError(f"{self.path}: holds results of other settings ({other}); {_WAY_OUT}")
        if not note.exists():
            self._refuse_foreign_summaries()
        elif fresh:
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(wanted, indent=1) + "\n")

    def _refuse_foreign_summaries(self) -> None:
        found = min(self.path.glob("*.summary.json"), default=None)
        if found is not None:
            raise ConfigurationError(
                f"{self.path}: holds {found.name} but no {BENCHMARK_NOTE}, so it is no benchmark's; expected a folder"
                " without summaries: use another --out, or delete them"
            )

    @property
    def table(self) -> Path:
        """The latency table that servers or simulations plan with; of a given one, a copy."""
        return self.path / self._table_name

    @property
    def pace_table(self) -> Path:
        """The latency table whose pace the ranks keep to, where they keep to one."""
        return self.path / "pace.latency.json"

    def table_after(self, cell: int) -> Path:
        """A latency table measured when all policies had been through a trace."""
        return self.path / f"measured-after-c{cell:03d}.latency.json"

    def pooled_table(self) -> LatencyTable:
        """The mean of all tables: what work cost over the whole time of a live benchmark."""
        tables = [LatencyTable.load(path) for path in (self.table, *sorted(self.path.glob("measured-after-*.json")))]
        first = tables[0]
        return first.corrected(
            lambda work: statistics.fmean(table.seconds(work) for table in tables) / first.seconds(work)
        )

    def predictions(self) -> "ResultFolder":
        """The folder of the simulator's side of live runs, made if it is not there."""
        folder = ResultFolder(self.path / "simulated")
        folder.path.mkdir(exist_ok=True)
        return folder

    def trace(self, run: BenchRun) -> Path:
        """The requests of the run; all policies share it."""
        return self.path / f"{run.cell_name}.trace.jsonl"

    def summary(self, run: BenchRun) -> Path:
        """What the run came to."""
        return self.path / f"{run.name}.summary.json"

    def timeline(self, run: BenchRun) -> Path:
        """What ran where and when; times count from the beginning of the trace."""
        return self.path / f"{run.name}.timeline.json"

    def answers(self, run: BenchRun) -> Path:
        """What the clients got, one line per request."""
        return self.path / f"{run.name}.answers.jsonl"

    def is_done(self, run: BenchRun) -> bool:
        """Whether the run need not be done again."""
        return self.summary(run).exists()

    def read_summary(self, run: BenchRun) -> Summary:
        """The summary of a run that is done.

        Raises:
            ConfigurationError: the file is missing or broken; tells how to have it made anew.
        """
        with self.reading(run):
            return read_summary(self.summary(run))

    def read_trace(self, run: BenchRun) -> list[TraceRequest]:
        """The trace of a run, as it was sent; made from the settings once more where the file has been deleted.

        Raises:
            ConfigurationError: the file is broken; tells the way out.
            OSError: the file is not there and cannot be written.
        """
        path = self.trace(run)
        if not path.exists():
            write_trace(path, generate(run.workload))
        try:
            return list(read_trace(path))
        except TraceError as error:
            raise TraceError(f"{error}; delete it to have it made again, or use --fresh") from error

    @contextlib.contextmanager
    def reading(self, run: BenchRun) -> Iterator[None]:
        """Errors about the files of a run that is done become a ConfigurationError that tells how to do it again."""
        try:
            yield
        except (ConfigurationError, OSError) as error:
            way_out = f"delete {self.summary(run)} to run it again, or use --fresh"
            raise ConfigurationError(f"{error}; {way_out}") from error

    def write_summary(self, run: BenchRun, summary: Summary) -> None:
        """Note that a run is done."""
        write_whole(self.summary(run), json.dumps(summary.to_dict(), indent=1) + "\n")


def _read_note(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected JSON: {error}; {_WAY_OUT}") from error
    if not isinstance(held, dict):
        raise ConfigurationError(f"{path}: expected the settings of a benchmark, got {held!r:.80}; {_WAY_OUT}")
    return held


def _digest(table: Path) -> str:
    """Names what a latency table says; empty where there is none, which is refused when it is read."""
    return hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else ""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old one or the whole new one."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
