"""The command that gives a table what it lacks."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tetriserve_backend.latency_table.document import TableDocument

_DTYPES: Final = ("float32", "bfloat16", "float16")
_MODEL_DEFAULTS: Final[Mapping[str, Any]] = {
    "attention_backend": "auto",
    "compile": False,
    "load_t5": True,
    "max_sequence_length": None,
    "text_encoder_ranks": None,
    "vae_tiling_above": 2048 * 2048,
}
_EXECUTOR_DEFAULTS: Final[Mapping[str, Any]] = {"threads_per_rank": 1, "pin_ranks": False}
"""What a table holds of the settings `model.` and `executor.`, by name: where it has just this, nobody set it."""


def profile_command(
    document: TableDocument,
    origin: str,
    *,
    resolutions: Iterable[tuple[int, int]] = (),
    degrees: Iterable[int] = (),
    batches: Iterable[int] = (),
) -> str:
    """`tetriserve profile`, as a shell takes it, of all that the table has and of these, so that nothing is lost.

    It computes as the table was measured, as far as that tells. A table that was measured on as many ranks is replaced
    where it lies; a new one goes to where servers look for it.
    """
    wanted = {*degrees, *(entry.ranks for entry in document.step)}
    world_size = max(document.world_size, *wanted)
    steps = ((entry.height, entry.width) for entry in document.step)
    decodes = ((entry.height, entry.width) for entry in document.decode)
    shapes = sorted({*steps, *decodes, *resolutions}, key=lambda shape: (shape[0] * shape[1], shape))
    words = ["tetriserve", "profile", "--model", document.model, *_how(document), "--world-size", str(world_size)]
    words += ["--resolutions", ",".join(f"{height}x{width}" for height, width in shapes)]
    words += ["--degrees", _listed(wanted)]
    words += ["--batches", _listed({*batches, *(entry.batch for entry in document.step)})]
    if document.source == "measured" and world_size == document.world_size and origin.endswith(".json"):
        words += ["-o", origin]
    command = f"`{shlex.join(words)}`"
    if document.settings.get("pace") is not None:
        # The table tells which pace that is, not where the file is.
        command += ", with `--set model.pace_table=` and the file of the times that its ranks kept to"
    return command


def _how(document: TableDocument) -> Iterator[str]:
    """Options for what was not as by default."""
    told = document.settings
    if told.get("random_weights") is True:
        yield "--random-weights"
    # The default depends on the device, and whether that is a GPU a table does not tell.
    if document.dtype in _DTYPES:
        yield from ("--set", f"model.dtype={document.dtype}")
    for prefix, defaults in (("model", _MODEL_DEFAULTS), ("executor", _EXECUTOR_DEFAULTS)):
        for name, default in defaults.items():
            value = told.get(name, default)
            if value != default:
                yield from ("--set", f"{prefix}.{name}={value if isinstance(value, str) else json.dumps(value)}")


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))
