"""Whether a model fits into memory, before minutes are spent on loading it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.stored_weights import PartWeights, read_weights

_GIB = 1 << 30
_T5_OF_SD3 = "text_encoder_3"
# Least room for activations, communication buffers and the libraries; what a batch needs, profiling finds.
_DEVICE_ROOM, _RANK_ROOM = 1 * _GIB, 64 << 20
_CGROUP = Path("/sys/fs/cgroup")

Need = Callable[[Sequence[PartWeights], str], int]
"""Bytes that parts need when they are computed with in a dtype."""


@dataclass(frozen=True, slots=True)
class _Room:
    free_bytes: int
    where: str


def check_host_memory(
    directory: Path, settings: ModelSettings, dtype: str, ranks: int, free_bytes: int | None = None
) -> None:
    """Check that `ranks` ranks on the CPU can load the model.

    What is stored in `dtype` is mapped and needs its size once for all of them; all else each rank copies.

    Args:
        directory: in diffusers format.
        settings: which parts are loaded.
        dtype: decided, not `auto`.
        ranks: how many load it.
        free_bytes: of memory; None asks the machine.

    Raises:
        ConfigurationError: it does not fit; says what would.
    """

    def need(parts: Sequence[PartWeights], as_dtype: str) -> int:
        copies = [(1 if part.is_mapped_as(as_dtype) else ranks) * part.loaded_bytes(as_dtype) for part in parts]
        return sum(copies) + ranks * _RANK_ROOM

    room = _Room(_free_host_bytes() if free_bytes is None else free_bytes, "this machine")
    _check(directory, settings, dtype, need, room)


def check_device_memory(directory: Path, settings: ModelSettings, dtype: str, free_bytes: int, device: str) -> None:
    """Check that one rank can load the model onto `device`, of which `free_bytes` are free.

    Raises:
        ConfigurationError: it does not fit; says what would.
    """

    def need(parts: Sequence[PartWeights], as_dtype: str) -> int:
        return sum(part.loaded_bytes(as_dtype) for part in parts) + _DEVICE_ROOM

    _check(directory, settings, dtype, need, _Room(free_bytes, device))


def _check(directory: Path, settings: ModelSettings, dtype: str, need: Need, room: _Room) -> None:
    stored = read_weights(directory)
    parts = [part for part in stored if settings.load_t5 or part.name != _T5_OF_SD3]
    needed = need(parts, dtype)
    if needed <= room.free_bytes:
        return
    sizes = ", ".join(f"{part.name} {_gib(part.loaded_bytes(dtype))}" for part in parts)
    raise ConfigurationError(
        f"{directory}: {_gib(needed)} needed in {dtype} ({sizes}), {_gib(room.free_bytes)} free on {room.where}; "
        f"what would fit: {_what_would_fit(parts, dtype, need, room.free_bytes)}"
    )


def _what_would_fit(parts: Sequence[PartWeights], dtype: str, need: Need, free_bytes: int) -> str:
    without_t5 = [part for part in parts if part.name != _T5_OF_SD3]
    choices = [("model.dtype: bfloat16", parts, "bfloat16")] if dtype == "float32" else []
    if len(without_t5) < len(parts):
        choices += [
            ("model.load_t5: false", without_t5, dtype),
            ("model.dtype: bfloat16 with model.load_t5: false", without_t5, "bfloat16"),
        ]
    needs = [(name, need(chosen, as_dtype)) for name, chosen, as_dtype in choices]
    fitting = [f"{name} ({_gib(size)})" for name, size in needs if size <= free_bytes]
    return " or ".join(fitting) or "more free memory or a smaller model"


def _free_host_bytes() -> int:
    """What the machine could give, or what is left to this container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):
        # No such limit.
        return free
    return min(free, max(0, limit - used))


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
