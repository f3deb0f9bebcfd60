"""`tetriserve table show`: a latency table for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tetriserve_backend.cli.table.files import explained_errors, read_document
from tetriserve_backend.cli.table.findings import Entry, label, move_label
from tetriserve_backend.cli.table.flat_settings import flat_settings
from tetriserve_backend.cli.table.grid import Grid, grids_of
from tetriserve_backend.cli.table.odd_times import MAX_HAND_OVER_SHARE
from tetriserve_backend.domain import image_tokens
from tetriserve_backend.latency_table.document import DecodeEntry, EncodeEntry, TableDocument
from tetriserve_profiling.hand_over import GOAL_FROM_TOKENS

_PLAIN_WIDTH = 160


def show(
    *,
    file: Annotated[Path, typer.Argument(help="Latency table (*.latency.json).", show_default=False)],
    heat_map: Annotated[
        Path | None, typer.Option(help="Also draw step time, speed-up and efficiency to this PNG.")
    ] = None,
) -> None:
    """Print settings, step times with speed-ups and efficiencies, encodes, decodes, memory, dispatch and hand-over.

    Entries that could not be had come last, with the reason.

    Exit status: 0 done; 2 a file that is no latency table, or a picture that cannot be written.
    """
    with explained_errors():
        document = read_document(file)
        print_table(document, make_console())
        if heat_map is not None:
            from tetriserve_backend.cli.table.heat_map import draw_heat_map  # noqa: PLC0415  (matplotlib is slow)

            print(draw_heat_map(document, heat_map))


def make_console() -> Console:
    """Wide where nobody looks, so that lines stay whole."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def print_table(document: TableDocument, console: Console) -> None:
    """All of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in document.software.items())
    console.print(
        f"{document.model} on {document.world_size} × {document.device}, {document.dtype}, {document.source}"
        + (f", {document.text_tokens} text tokens" if document.text_tokens else "")
        + (f"\n{versions}" if versions else "")
    )
    if settings := ", ".join(f"{name} {value}" for name, value in flat_settings(document).items()):
        # Lists are no markup.
        console.print(settings, markup=False, soft_wrap=True)
    for grid in grids_of(document):
        console.print(_steps(grid))
    console.print(_stages(document))
    for line in hand_over_lines(document):
        console.print(line)
    for entry in document.absent:
        console.print(f"absent: {label(entry)}: {entry.reason}", markup=False, soft_wrap=True)


def hand_over_lines(document: TableDocument) -> Iterator[str]:
    """What it costs to move a latent between placements, a line per move and one for the dearest that has a goal."""
    for move in document.hand_over:
        yield (
            f"{move_label(move)}: {1e3 * move.seconds:.3f} ms, {move.share_of_step:.3%} of a step "
            f"({1e3 * move.between_seconds:.3f} ms between the segments)"
        )
    large = [m for m in document.hand_over if image_tokens(m.height, m.width) >= GOAL_FROM_TOKENS]
    if large:
        dearest = max(move.share_of_step for move in large)
        yield f"dearest hand-over from 512x512 on: {dearest:.3%} of a step (goal: at most {MAX_HAND_OVER_SHARE:.1%})"


def _steps(grid: Grid) -> Table:
    table = Table(title=f"{grid.title}: ms (speed-up, efficiency; cv; most memory of a rank)")
    table.add_column("resolution", no_wrap=True)
    for column in grid.columns:
        table.add_column(column, justify="right")
    for shape, row in grid.rows():
        table.add_row(f"{shape[0]}x{shape[1]}", *(_cell(grid, shape, column) for column in row))
    return table


def _cell(grid: Grid, shape: tuple[int, int], column: int) -> str:
    entry = grid.at(shape, column)
    if entry is None:
        return "—"
    text = f"{1e3 * entry.seconds:.1f}"
    speed_up = grid.speed_up(shape, column)
    notes = [] if speed_up is None else [f"×{speed_up:.2f}, {speed_up / grid.ranks[column]:.0%}"]
    return _with_notes(text, [*notes, *_sample_notes(entry)])


def _stages(document: TableDocument) -> Table:
    table = Table(title="on one rank: ms (cv; most memory)")
    table.add_column("stage", no_wrap=True)
    table.add_column("ms", justify="right")
    entries: Sequence[EncodeEntry | DecodeEntry] = (*document.encode, *document.decode)
    for entry in entries:
        table.add_row(label(entry), _with_notes(f"{1e3 * entry.seconds:.2f}", _sample_notes(entry)))
    table.add_row("dispatch of a segment", f"{1e3 * document.dispatch_seconds:.2f}")
    return table


def _sample_notes(entry: Entry) -> list[str]:
    notes = [] if entry.cv is None else [f"cv {entry.cv:.1%}"]
    return notes if entry.memory_bytes is None else [*notes, f"{entry.memory_bytes / 2**30:.1f} GiB"]


def _with_notes(text: str, notes: Sequence[str]) -> str:
    return f"{text} ({'; '.join(notes)})" if notes else text
