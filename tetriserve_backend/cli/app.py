"""The command `tetriserve`; each subcommand lives in a module of its own and is imported when it is called."""

from typing import Final

import typer

from tetriserve_backend.cli.lazy import Subcommand, lazy_group

_SUBCOMMANDS: Final = {
    "serve": Subcommand("tetriserve_backend.cli.serve", "serve", takes_extra_arguments=True),
    "generate": Subcommand("tetriserve_backend.cli.generate", "generate"),
    "demo": Subcommand("tetriserve_backend.cli.demo", "demo"),
    "profile": Subcommand("tetriserve_backend.cli.profile_command", "profile"),
    "table": Subcommand("tetriserve_backend.cli.table.app", "app"),
    "simulate": Subcommand("tetriserve_backend.cli.simulate", "simulate"),
    "workload": Subcommand("tetriserve_backend.cli.make_workload", "workload"),
    "sweep": Subcommand("tetriserve_backend.cli.sweep", "sweep"),
    "report": Subcommand("tetriserve_backend.cli.draw_report", "report"),
    "bench": Subcommand("tetriserve_backend.cli.bench.command", "bench"),
    "bench-overhead": Subcommand("tetriserve_backend.cli.overhead.command", "bench_overhead"),
}

app = typer.Typer(
    cls=lazy_group(_SUBCOMMANDS),
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
