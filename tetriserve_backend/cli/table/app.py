"""The group `tetriserve table`."""

from typing import Final

import typer

from tetriserve_backend.cli.lazy import Subcommand, lazy_group

_SUBCOMMANDS: Final = {
    "show": Subcommand("tetriserve_backend.cli.table.show", "show"),
    "check": Subcommand("tetriserve_backend.cli.table.check", "check"),
    "diff": Subcommand("tetriserve_backend.cli.table.diff", "diff"),
    "model": Subcommand("tetriserve_backend.cli.table.model", "model"),
}

app = typer.Typer(
    cls=lazy_group(_SUBCOMMANDS), no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def table() -> None:
    """Look at latency tables, check them, compare them, compute them."""
