"""`tetriserve report`: summaries and timelines as figures and one page."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tetriserve_backend.cli.reporting.page import write_page
from tetriserve_backend.cli.reporting.pictures import best_first, summary_pictures, timeline_pictures
from tetriserve_backend.cli.summary_files import read_summary
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.domain import ConfigurationError

_EXIT_WRONG_INPUT = 2


def report(
    *,
    summaries: Annotated[
        list[Path] | None, typer.Argument(help="Summaries (*.summary.json), or folders with them.", show_default=False)
    ] = None,
    timeline: Annotated[list[Path] | None, typer.Option(help="Timelines (*.timeline.json), repeatable.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the figures and report.html.")] = Path("report"),
) -> None:
    """Draw figures of what simulate, sweep or a server wrote, and put them on one self-contained page.

    What is drawn follows from what is there: attainment against SLO scale or rate needs runs that differ in it.

    Exit status: 0 done; 2 a file is missing or broken.
    """
    try:
        read = best_first([read_summary(path) for path in _summary_files(summaries or [])])
        views = {_name_of(path): TimelineView.load(path) for path in timeline or []}
        if not read and not views:
            raise ConfigurationError("report: expected at least one summary or timeline")
        out.mkdir(parents=True, exist_ok=True)
        pictures = [*summary_pictures(read, out), *timeline_pictures(views, out)]
        write_page(out / "report.html", read, pictures)
    except (ConfigurationError, OSError, ValueError) as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    print(f"{out / 'report.html'}: {len(read)} runs, {len(pictures)} figures")


def _summary_files(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            yield from sorted(path.glob("*.summary.json"))
        else:
            yield path


def _name_of(path: Path) -> str:
    return path.name.removesuffix(".json").removesuffix(".timeline")
