"""The command `tetriserve`; each subcommand lives in a module of its own and is imported when it is called."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand's function is, and whether what follows `--` is its business."""

    module: str
    function: str
    takes_extra_arguments: bool = False


_SUBCOMMANDS: Final = {
    "serve": Subcommand("tetriserve_backend.cli.serve", "serve", takes_extra_arguments=True),
    "generate": Subcommand("tetriserve_backend.cli.generate", "generate"),
    "demo": Subcommand("tetriserve_backend.cli.demo", "demo"),
    "simulate": Subcommand("tetriserve_backend.cli.simulate", "simulate"),
    "workload": Subcommand("tetriserve_backend.cli.make_workload", "workload"),
    "sweep": Subcommand("tetriserve_backend.cli.sweep", "sweep"),
    "report": Subcommand("tetriserve_backend.cli.draw_report", "report"),
    "bench-overhead": Subcommand("tetriserve_backend.cli.overhead.command", "bench_overhead"),
}


class LazyCommands(TyperGroup):
    """Imports a subcommand's module only when it is asked for, so that each starts fast."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help text."""
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        subcommand = _SUBCOMMANDS.get(cmd_name)
        if subcommand is None:
            return None
        function: Callable[..., None] = getattr(importlib.import_module(subcommand.module), subcommand.function)
        lone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        lone.command(cmd_name, context_settings={"allow_extra_args": subcommand.takes_extra_arguments})(function)
        return typer.main.get_command(lone)


app = typer.Typer(
    cls=LazyCommands,
    name="tetriserve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def tetriserve() -> None:
    """Deadline-aware serving of diffusion transformers on a pool of GPUs, inside NVIDIA Triton."""


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
