"""`tetriserve table diff`: two latency tables side by side."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from tetriserve_backend.cli.table.comparison import Comparison, Overhead, Pair, compare
from tetriserve_backend.cli.table.files import explained_errors, read_document
from tetriserve_backend.cli.table.show import make_console
from tetriserve_profiling.spread import NOISE_FLOOR

_EXIT_DIFFERENT: Final = 1


def diff(
    *,
    first: Annotated[Path, typer.Argument(help="Latency table (*.latency.json).", show_default=False)],
    second: Annotated[Path, typer.Argument(help="The one to compare it with.", show_default=False)],
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Share that steps, encodes and decodes may differ by, whatever their CV.")
    ] = NOISE_FLOOR,
    top: Annotated[int | None, typer.Option(min=1, help="Print only so many entries, and so many overheads.")] = None,
) -> None:
    """Print the entries of two tables with their ratios, those that differ the most first.

    Two entries agree if they differ by no more than four times the larger CV of both (at most 50 %), or than the
    tolerance. Slower by half and faster by a third are the same difference. Dispatch and hand-overs agree if with the
    step behind them (the shortest behind a dispatch) they differ by no more than that step may.

    Exit status: 0 all that is common agrees; 1 some does not, or no entry is common; 2 a file that is no latency
    table.
    """
    with explained_errors():
        comparison = compare(read_document(first), read_document(second), tolerance)
    console = make_console()
    for fact in comparison.facts:
        # Lists are no markup.
        console.print(fact, markup=False, soft_wrap=True)
    console.print(_entries(comparison, top))
    console.print(_overheads(comparison, top))
    for path, names in ((first, comparison.only_first), (second, comparison.only_second)):
        if names:
            console.print(f"only in {path}: {', '.join(names)}", markup=False, soft_wrap=True)
    total, overheads = len(comparison.pairs), len(comparison.overheads)
    console.print(
        f"{total - comparison.disagreeing} of {total} entries agree; "
        f"median ratio {comparison.median_distance:.3f}, largest {comparison.max_distance:.3f} (larger over smaller)\n"
        f"{overheads - comparison.disagreeing_overheads} of {overheads} overheads (dispatch, hand-overs) agree"
    )
    disagreeing = comparison.disagreeing or comparison.disagreeing_overheads
    raise typer.Exit(_EXIT_DIFFERENT if disagreeing or not total else 0)


def _entries(comparison: Comparison, top: int | None) -> Table:
    table = _columns("entry", "first ms", "second ms", "second / first", "allowed", "")
    for pair in comparison.pairs[:top]:
        table.add_row(
            pair.name,
            f"{1e3 * pair.first_s:.2f}",
            f"{1e3 * pair.second_s:.2f}",
            f"{pair.ratio:.3f}",
            f"±{pair.allowed:.1%}",
            _verdict(pair),
        )
    return table


def _overheads(comparison: Comparison, top: int | None) -> Table:
    table = _columns("overhead", "first ms", "second ms", "of a step", "allowed", "")
    for overhead in comparison.overheads[:top]:
        table.add_row(
            # Lists are no markup.
            escape(overhead.name),
            f"{1e3 * overhead.first_s:.3f}",
            f"{1e3 * overhead.second_s:.3f}",
            f"{overhead.share:.2%}",
            f"±{overhead.allowed:.1%}",
            _verdict(overhead),
        )
    return table


def _columns(name: str, *values: str) -> Table:
    table = Table()
    table.add_column(name)
    for heading in values:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _verdict(compared: Pair | Overhead) -> str:
    return "" if compared.agrees else "[red]differs[/red]"
