"""Command groups whose subcommands are imported when they are called, so that each starts fast."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand is, and whether what follows `--` is its business.

    Attributes:
        attribute: a function, or a `typer.Typer` with subcommands of its own.
    """

    module: str
    attribute: str
    takes_extra_arguments: bool = False


def lazy_group(subcommands: Mapping[str, Subcommand]) -> type[TyperGroup]:
    """A group of these, in this order."""

    class LazyCommands(TyperGroup):
        """Imports a subcommand's module only when it is asked for."""

        def list_commands(self, ctx: Any) -> list[str]:
            """The names, in the order of the help text."""
            return list(subcommands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """The command of that name, or None."""
            subcommand = subcommands.get(cmd_name)
            return None if subcommand is None else _load(cmd_name, subcommand)

    return LazyCommands


def _load(name: str, subcommand: Subcommand) -> Any:
    found = getattr(importlib.import_module(subcommand.module), subcommand.attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_command(found)
        group.name = name
        return group
    lone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    lone.command(name, context_settings={"allow_extra_args": subcommand.takes_extra_arguments})(found)
    return typer.main.get_command(lone)
