"""A table of text that can be shown in the terminal and written as Markdown, CSV and HTML."""

import csv
import io
from dataclasses import dataclass
from html import escape

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows under headings; the first column says what a row is about.

    Attributes:
        notes: sentences below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """With its title as a heading."""
        bar = "|" + "|".join(" --- " if not number else " ---: " for number in range(len(self.headings))) + "|"
        lines = [f"## {self.title}", "", _joined(self.headings), bar, *(_joined(row) for row in self.rows)]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def to_csv(self) -> str:
        """Headings and rows."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.headings, *self.rows])
        return out.getvalue()

    def to_html(self) -> str:
        """A table element."""
        head = "".join(f"<th>{escape(heading)}</th>" for heading in self.headings)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _joined(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
