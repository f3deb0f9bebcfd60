"""A table's settings without their nesting."""

from collections.abc import Iterator, Mapping
from typing import Any

from tetriserve_backend.latency_table.document import TableDocument


def flat_settings(document: TableDocument) -> dict[str, Any]:
    """By dotted name, such as `profile.repeats`."""
    return dict(_flat(document.settings, ""))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
