"""Whether a file or a folder can be written, known before the work that it is for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError


def refuse_unwritable(target: Path, called: str) -> None:
    """Refuse a file that cannot be made. Tries it, as permissions do not tell all, and leaves nothing behind.

    Args:
        target: the file; its folder need not be there yet.
        called: what the error calls it.

    Raises:
        ConfigurationError: `target` is a folder, or nothing can be written where it would lie.
    """
    with _explained(called, "a file in a writable folder"):
        if target.is_dir():
            raise ConfigurationError(f"{called}: is a folder; allowed: a file, such as {target / 'new.latency.json'}")
        _try_in(next(parent for parent in target.parents if parent.exists()))


def refuse_unwritable_folder(target: Path, called: str) -> None:
    """Refuse a folder that cannot be made, or no file in it. Tries it and leaves nothing behind.

    Args:
        target: the folder, which need not be there yet.
        called: what the error calls it.

    Raises:
        ConfigurationError: there is a file in its place or above it, or nothing can be written there.
    """
    with _explained(called, "a folder in a writable one"):
        there = next(path for path in (target, *target.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ConfigurationError(f"{called}: {there} is a file; allowed: a folder, or the name of a new one")
        _try_in(there)


def _try_in(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _explained(called: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{called}: cannot be written: {error.strerror}; fix: name {way_out} with --out"
        ) from error
