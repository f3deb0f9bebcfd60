"""Latency tables from the command line's files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from tetriserve_backend.domain import TetriserveError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import TableDocument, parse_document

EXIT_WRONG_INPUT: Final = 2


def read_document(path: Path) -> TableDocument:
    """The whole content of a latency table.

    Raises:
        LatencyTableError: the file is none; names the file, the field and the fix.
    """
    return parse_document(LatencyTable.load(path).to_dict(), str(path))


@contextmanager
def explained_errors() -> Iterator[None]:
    """End the command with one line on standard error where a file or an option is wrong."""
    try:
        yield
    except (TetriserveError, OSError) as error:
        explain(error)
        raise typer.Exit(EXIT_WRONG_INPUT) from error


def explain(error: Exception) -> None:
    """One line on standard error."""
    print(f"tetriserve: {error}", file=sys.stderr)
