"""`tetriserve table check`: whether a latency table makes sense."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from tetriserve_backend.cli.options import parse_numbers, parse_resolutions, read_settings
from tetriserve_backend.cli.table.configured import conflicts, wanted_shapes
from tetriserve_backend.cli.table.expectation import Demand, Expectation, expectation_of, missing_shapes
from tetriserve_backend.cli.table.files import EXIT_WRONG_INPUT, explain, explained_errors, read_document
from tetriserve_backend.cli.table.findings import Finding, Severity
from tetriserve_backend.cli.table.model_counts import known_counts
from tetriserve_backend.cli.table.odd_times import odd_times
from tetriserve_backend.domain import TetriserveError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import TableDocument
from tetriserve_backend.triton_adapter.settings import ServerSettings

_EXIT_BAD_TABLE: Final = 1


def check(
    *,
    files: Annotated[list[Path], typer.Argument(help="Latency tables (*.latency.json).", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="YAML file with a server's settings that the tables are for.")
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH that must be there, with commas between; default: as configured, or the table's."
        ),
    ] = None,
    degrees: Annotated[
        str | None, typer.Option(help="Degrees that must be there; default: as configured, or the table's.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Batches that must be there; default: as configured, or the table's.")
    ] = None,
    cv_limit: Annotated[float, typer.Option(min=0.0, help="Coefficient of variation above which to warn.")] = 0.05,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
) -> None:
    """Check that times rise with tokens and batch, speed-ups are possible, no shape is missing, and samples agree.

    With --config, a shape is missing if the configuration allows it: each resolution of quick_resolutions, on each
    number of ranks that has groups, that the policy may take and that the model can run at, in each batch up to
    scheduler.max_batch. Where nothing tells what the model can run at, a degree that the table has nowhere is a
    warning. What else does not go with the configuration is told too.

    Of several files each is checked, whatever is wrong with the others.

    Exit status, the highest of all files: 0 no errors; 1 errors, or warnings with --strict; 2 a file that is no latency
    table, or a wrong option.
    """
    console = Console(highlight=False, soft_wrap=True)
    with explained_errors():
        settings = read_settings(config, [], {}) if config else None
        asked = _asked(resolutions, degrees, batches)
    status = 0
    for path in files:
        try:
            found = _findings(path, settings, asked, cv_limit)
        except (TetriserveError, OSError) as error:
            explain(error)
            status = EXIT_WRONG_INPUT
            continue
        _print(console, path, found)
        if any(strict or finding.severity is Severity.ERROR for finding in found):
            status = max(status, _EXIT_BAD_TABLE)
    raise typer.Exit(status)


def find_all(document: TableDocument, expected: Expectation, cv_limit: float) -> list[Finding]:
    """Whatever is missing or odd, errors first."""
    found = [*missing_shapes(document, expected), *odd_times(document, cv_limit)]
    return sorted(found, key=lambda finding: finding.severity is Severity.WARNING)


def _findings(
    path: Path, settings: ServerSettings | None, asked: Mapping[str, Any], cv_limit: float
) -> Sequence[Finding]:
    document, table = read_document(path), LatencyTable.load(path)
    own = wanted_shapes(settings, table) if settings else expectation_of(document, known_counts(table))
    found = find_all(document, replace(own, **asked), cv_limit)
    found += conflicts(settings, table) if settings else []
    return sorted(found, key=lambda finding: finding.severity is Severity.WARNING)


def _asked(resolutions: str | None, degrees: str | None, batches: str | None) -> dict[str, Any]:
    """What the options say of an `Expectation`."""
    asked: dict[str, Any] = {}
    if resolutions:
        asked["resolutions"] = parse_resolutions("--resolutions", resolutions)
    if degrees:
        asked |= {"degrees": parse_numbers("--degrees", degrees), "demand": Demand.PERSON}
    if batches:
        asked["batches"] = parse_numbers("--batches", batches)
    return asked


def _print(console: Console, path: Path, found: Sequence[Finding]) -> None:
    for finding in found:
        color = "red" if finding.severity is Severity.ERROR else "yellow"
        console.print(f"[{color}]{finding.severity.value}[/{color}]: {escape(f'{finding.where}: {finding.text}')}")
    errors = sum(finding.severity is Severity.ERROR for finding in found)
    console.print(f"{path}: {errors} error(s), {len(found) - errors} warning(s)")
