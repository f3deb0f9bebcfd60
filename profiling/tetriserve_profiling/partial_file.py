"""What a profile has measured so far, on disk, so that it can be taken up after Ctrl-C or a crash."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.record import Identity, Record

_SCHEMA = "tetriserve.latency_profile/1"


def partial_path(table: Path) -> Path:
    """Where the profile of that table is kept while it is being measured."""
    return table.with_name(f"{table.name}.partial")


class PartialFile:
    """The file beside the table that is being measured.

    Args:
        table: the file that will hold the table.
        identity: of this profile; samples of another one are refused.
    """

    def __init__(self, table: Path, identity: Identity) -> None:
        self.path = partial_path(table)
        self._identity = json.loads(json.dumps(identity.to_dict()))

    def load(self) -> Record:
        """The record in the file; an empty one if there is no file.

        Raises:
            ConfigurationError: the file is broken, or belongs to another profile; says what differs and what to do.
        """
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            if raw["schema"] != _SCHEMA:
                raise ValueError(f"schema: got {raw['schema']!r}, expected {_SCHEMA!r}")
            differences = list(_differences(raw["identity"], self._identity))
            record = Record.from_dict(raw["record"])
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise ConfigurationError(f"profile {self.path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"profile {self.path}: cannot be taken up: {error!r}; fix: start anew with --fresh"
            ) from error
        if differences:
            raise ConfigurationError(
                f"profile {self.path}: measured with other {'; '.join(differences)}; samples of both do not belong "
                "into one table; fix: measure as before, start anew with --fresh, or write elsewhere with --out"
            )
        return record

    def save(self, record: Record) -> None:
        """Replace the file by this record; a reader sees the old or the new one, never a part.

        Raises:
            ConfigurationError: it cannot be written.
        """
        text = json.dumps({"schema": _SCHEMA, "identity": self._identity, "record": record.to_dict()}) + "\n"
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(self.path)
        except OSError as error:
            raise ConfigurationError(
                f"profile {self.path}: cannot be written: {error.strerror}; fix: make room, or use another --out"
            ) from error

    def remove(self) -> None:
        """Forget what was measured."""
        self.path.unlink(missing_ok=True)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key} ({before!r} then, {now!r} now)")
    return found
