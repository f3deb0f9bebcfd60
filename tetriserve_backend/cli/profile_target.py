"""The file that a profile writes, and what must not get lost by it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tetriserve_backend.domain import ConfigurationError, LatencyTableError, SegmentKind
from tetriserve_backend.latency_table import LatencyTable, Work
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.record import Identity
from tetriserve_profiling.told import first_of

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.]+")
_LOST_TOLD: Final = 4
_WAYS_OUT: Final = "write elsewhere with --out, or replace it with --force"


def table_name(identity: Identity, conditions: Conditions) -> str:
    """The file of a table in the model repository: one for each model, machine, dtype, text and way to compute."""
    parts = [Path(identity.model).name, f"{identity.world_size}x{identity.device}", identity.dtype]
    parts += [f"t{identity.text_tokens}", *conditions.words]
    return "-".join(_UNSAFE.sub("_", part).strip("_") for part in parts) + ".latency.json"


def refuse_loss(target: Path, identity: Identity, conditions: Conditions, work: Sequence[Work]) -> None:
    """A table may be replaced by one of the same thing that has all its steps and decodes.

    Args:
        target: the file to write.
        identity: of what is going to be measured.
        conditions: of the same.
        work: what is going to be measured.

    Raises:
        ConfigurationError: `target` holds something else or more; tells what would be lost.
    """
    if not target.exists():
        return
    try:
        table = LatencyTable.load(target)
    except LatencyTableError as error:
        raise ConfigurationError(f"table {target}: exists and is no latency table; fix: {_WAYS_OUT}") from error
    if differences := [*_differences(table, identity), *conditions.differences(table.settings)]:
        raise ConfigurationError(
            f"table {target}: exists and is of other {', '.join(differences)}; fix: {_WAYS_OUT}"
        )  # fmt: skip
    planned = set(work)
    lost = [str(one) for one in table.works if one.kind is not SegmentKind.ENCODE and one not in planned]
    if lost:
        raise ConfigurationError(
            f"table {target}: exists and has what would not be measured: {', '.join(first_of(lost, _LOST_TOLD))}; "
            f"fix: ask for these as well, {_WAYS_OUT}"
        )


def _differences(table: LatencyTable, identity: Identity) -> list[str]:
    told = {
        "model": (table.model, identity.model),
        "device": (table.device, identity.device),
        "world_size": (table.world_size, identity.world_size),
        "dtype": (table.dtype, identity.dtype),
        "text_tokens": (table.text_tokens, identity.text_tokens),
        "source": (table.source, "measured"),
    }
    # A table made by hand need not tell its text length.
    return [f"{name} ({old!r}, here {new!r})" for name, (old, new) in told.items() if old not in (None, new)]
