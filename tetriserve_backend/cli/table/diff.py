"""`tetriserve table diff`: two latency tables side by side."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from tetriserve_backend.cli.table.comparison import Comparison, compare
from tetriserve_backend.cli.table.files import explained_errors, read_document
from tetriserve_backend.cli.table.show import make_console
from tetriserve_profiling.spread import NOISE_FLOOR

_EXIT_DIFFERENT: Final = 1


def diff(
    *,
    first: Annotated[Path, typer.Argument(help="Latency table (*.latency.json).", show_default=False)],
    second: Annotated[Path, typer.Argument(help="The one to compare it with.", show_default=False)],
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Share that entries may differ by, whatever their CV.")
    ] = NOISE_FLOOR,
    top: Annotated[int | None, typer.Option(min=1, help="Print only so many entries.")] = None,
) -> None:
    """Print the entries of two tables with their ratios, those that differ the most first.

    Two entries agree if they differ by no more than four times the larger CV of both (at most 50 %), or than the
    tolerance. Slower by half and faster by a third are the same difference.

    Exit status: 0 all common entries agree; 1 some do not, or none is common; 2 a file that the server would refuse.
    """
    with explained_errors():
        comparison = compare(read_document(first), read_document(second), tolerance)
    console = make_console()
    for fact in comparison.facts:
        # Lists are no markup.
        console.print(fact, markup=False, soft_wrap=True)
    console.print(_table(comparison, top))
    for path, names in ((first, comparison.only_first), (second, comparison.only_second)):
        if names:
            console.print(f"only in {path}: {', '.join(names)}", soft_wrap=True)
    total = len(comparison.pairs)
    console.print(
        f"{total - comparison.disagreeing} of {total} entries agree; "
        f"median ratio {comparison.median_distance:.3f}, largest {comparison.max_distance:.3f} (larger over smaller)"
    )
    raise typer.Exit(_EXIT_DIFFERENT if comparison.disagreeing or not total else 0)


def _table(comparison: Comparison, top: int | None) -> Table:
    table = Table()
    table.add_column("entry", no_wrap=True)
    for heading in ("first ms", "second ms", "second / first", "allowed", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in comparison.pairs[:top]:
        table.add_row(
            pair.name,
            f"{1e3 * pair.first_s:.2f}",
            f"{1e3 * pair.second_s:.2f}",
            f"{pair.ratio:.3f}",
            f"±{pair.allowed:.1%}",
            "" if pair.agrees else "[red]differs[/red]",
        )
    return table
