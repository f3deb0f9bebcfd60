"""What a simulation is made of: traces, tables and faults, from files and options."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tetriserve_backend.domain import ConfigurationError, Request
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.simulator.sweep import table_with_dispatch
from tetriserve_backend.simulator.trace import read_trace
from tetriserve_backend.simulator.virtual_world import RankFailure


def load_tables(given: Sequence[str], dispatch_s: float | None) -> LatencyTables:
    """The tables of `[NAME=]FILE` options; without a name it is that of the only model.

    Args:
        given: the options.
        dispatch_s: cost of sending a segment, instead of the tables'; None leaves it.

    Raises:
        ConfigurationError: several without a name, or one name twice.
        LatencyTableError: a file is missing or broken.
    """
    tables: dict[str, LatencyTable] = {}
    for text in given:
        name, separator, path = text.partition("=")
        name, path = (name, path) if separator and not Path(text).exists() else ("", text)
        if name in tables or (not name and len(given) > 1):
            raise ConfigurationError(
                f"--latency-table {text}: allowed: NAME=FILE, each name once, where there are several"
            )
        table = LatencyTable.load(path)
        tables[name] = table if dispatch_s is None else table_with_dispatch(table, dispatch_s)
    return LatencyTables(tables)


def check_trace(trace: Path, tables: Sequence[LatencyTables]) -> None:
    """Refuse a trace that is wrong, or asks for what a table of its model lacks, before anything is run.

    A pipe can be read but once: there it is found on the way.

    Raises:
        LatencyTableError, TraceError: as `read_requests`.
    """
    if trace.is_file():
        for _ in read_requests(trace, tables):
            pass


def read_requests(trace: Path, tables: Sequence[LatencyTables]) -> Iterator[Request]:
    """The requests of a trace, one at a time.

    Those of a model without a table come along: the engine refuses them, as a server does.

    Raises:
        LatencyTableError: a table that there is lacks the shape of a request.
        TraceError: as `read_trace`.
    """
    for line in read_trace(trace):
        for served in tables:
            if served.has(line.model):
                served.of(line.model).check_resolution(line.height, line.width)
        yield line.to_request()


def parse_failure(text: str, gpus: int) -> RankFailure:
    """A `RANK@SECONDS[:RESPAWN_S]`.

    Raises:
        ConfigurationError: not of that form, or no such rank.
    """
    rank, _, times = text.partition("@")
    at, _, respawn = times.partition(":")
    try:
        failure = RankFailure(int(rank), float(at), float(respawn)) if respawn else RankFailure(int(rank), float(at))
    except ValueError:
        raise ConfigurationError(f"--fail {text}: allowed: RANK@SECONDS[:RESPAWN_S], such as 3@10.5:20") from None
    if not 0 <= failure.rank < gpus or failure.at_s < 0 or failure.respawn_s < 0:
        raise ConfigurationError(f"--fail {text}: allowed: ranks 0 to {gpus - 1}, seconds of at least 0")
    return failure


def parse_slow_rank(text: str, gpus: int) -> tuple[int, float]:
    """A `RANK=FACTOR`.

    Raises:
        ConfigurationError: not of that form, no such rank, or a factor that is not more than 0.
    """
    rank_text, _, factor_text = text.partition("=")
    try:
        rank, factor = int(rank_text), float(factor_text)
    except ValueError:
        raise ConfigurationError(f"--slow-rank {text}: allowed: RANK=FACTOR, such as 3=1.3") from None
    if not 0 <= rank < gpus or not 0.0 < factor < math.inf:
        raise ConfigurationError(f"--slow-rank {text}: allowed: ranks 0 to {gpus - 1}, factors of more than 0")
    return rank, factor


def sidecar_labels(trace: Path) -> dict[str, Any]:
    """What `tetriserve workload` noted about the trace that it made."""
    sidecar = trace.with_name(trace.name.removesuffix(".jsonl").removesuffix(".trace") + ".workload.json")
    try:
        labels = json.loads(sidecar.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return labels if isinstance(labels, dict) else {}


def parse_label(text: str) -> tuple[str, Any]:
    """A `KEY=VALUE`, the value as JSON where it is that.

    Raises:
        ConfigurationError: not of that form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"--label {text}: allowed: KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
