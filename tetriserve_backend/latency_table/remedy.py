"""The command that gives a table what it lacks."""

import shlex
from collections.abc import Iterable

from tetriserve_backend.latency_table.document import TableDocument


def profile_command(
    document: TableDocument,
    origin: str,
    *,
    resolutions: Iterable[tuple[int, int]] = (),
    degrees: Iterable[int] = (),
    batches: Iterable[int] = (),
) -> str:
    """`tetriserve profile`, as a shell takes it, of all that the table has and of these, so that nothing is lost.

    A table that was measured on as many ranks is replaced where it lies; a new one goes to where servers look for it.
    """
    wanted = {*degrees, *(entry.ranks for entry in document.step)}
    world_size = max(document.world_size, *wanted)
    steps = ((entry.height, entry.width) for entry in document.step)
    decodes = ((entry.height, entry.width) for entry in document.decode)
    shapes = sorted({*steps, *decodes, *resolutions}, key=lambda shape: (shape[0] * shape[1], shape))
    words = ["tetriserve", "profile", "--model", document.model, "--world-size", str(world_size)]
    words += ["--resolutions", ",".join(f"{height}x{width}" for height, width in shapes)]
    words += ["--degrees", _listed(wanted)]
    words += ["--batches", _listed({*batches, *(entry.batch for entry in document.step)})]
    if document.source == "measured" and world_size == document.world_size and origin.endswith(".json"):
        words += ["-o", origin]
    return f"`{shlex.join(words)}`"


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))
