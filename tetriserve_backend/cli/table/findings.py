"""What may be said of a latency table, and how its entries are called."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from tetriserve_backend.latency_table.document import AbsentEntry, DecodeEntry, EncodeEntry, MoveEntry, StepEntry
from tetriserve_backend.latency_table.work import decode_work, encode_work, step_work


class Severity(str, Enum):
    """ERROR: plans made with the table will be wrong, or shapes refused. WARNING: worth a look, may be the truth."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is odd, with its numbers."""

    severity: Severity
    where: str
    text: str


Entry: TypeAlias = StepEntry | EncodeEntry | DecodeEntry


def label(entry: Entry | AbsentEntry) -> str:
    """An entry, or what could not be had, in words."""
    if isinstance(entry, EncodeEntry) or (isinstance(entry, AbsentEntry) and entry.kind == "encode"):
        return str(encode_work(entry.batch))
    if isinstance(entry, DecodeEntry) or (isinstance(entry, AbsentEntry) and entry.kind == "decode"):
        return str(decode_work(entry.height, entry.width))
    return str(step_work(entry.height, entry.width, entry.batch, entry.sp, entry.cfg))


def move_label(move: MoveEntry) -> str:
    """A hand-over in words."""
    return f"hand-over {move.height}x{move.width} from {move.before} to {move.after}"


def milliseconds(seconds: float) -> str:
    """For people."""
    return f"{1e3 * seconds:.4g} ms"
