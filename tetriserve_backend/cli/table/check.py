"""`tetriserve table check`: whether a latency table makes sense."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from tetriserve_backend.cli.options import parse_numbers, parse_resolutions, read_settings
from tetriserve_backend.cli.table.configured import conflicts, wanted_shapes
from tetriserve_backend.cli.table.files import explained_errors, read_document
from tetriserve_backend.cli.table.findings import Expectation, Finding, Severity, expectation_of, find_all
from tetriserve_backend.latency_table import LatencyTable

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
    number of ranks that has groups, in each batch up to scheduler.max_batch. What else does not go with the
    configuration is told too.

    Exit status: 0 no errors; 1 errors, or warnings with --strict; 2 a file that the server would refuse.
    """
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    with explained_errors():
        settings = read_settings(config, [], {}) if config else None
    for path in files:
        with explained_errors():
            document = read_document(path)
            table = LatencyTable.load(path)
            own = wanted_shapes(settings, table) if settings else expectation_of(document)
            found = [*conflicts(settings, table)] if settings else []
            found += find_all(document, _expected(own, resolutions, degrees, batches), cv_limit)
            found.sort(key=lambda finding: finding.severity is Severity.WARNING)
        _print(console, path, found)
        failed = failed or any(strict or finding.severity is Severity.ERROR for finding in found)
    raise typer.Exit(_EXIT_BAD_TABLE if failed else 0)


def _expected(own: Expectation, resolutions: str | None, degrees: str | None, batches: str | None) -> Expectation:
    return Expectation(
        parse_resolutions("--resolutions", resolutions) if resolutions else own.resolutions,
        parse_numbers("--degrees", degrees) if degrees else own.degrees,
        parse_numbers("--batches", batches) if batches else own.batches,
    )


def _print(console: Console, path: Path, found: Sequence[Finding]) -> None:
    for finding in found:
        color = "red" if finding.severity is Severity.ERROR else "yellow"
        console.print(f"[{color}]{finding.severity.value}[/{color}]: {escape(f'{finding.where}: {finding.text}')}")
    errors = sum(finding.severity is Severity.ERROR for finding in found)
    console.print(f"{path}: {errors} error(s), {len(found) - errors} warning(s)")
