"""Whether a model fits into memory, before minutes are spent on loading it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import psutil

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.container import memory_left_bytes
from tetriserve_backend.executor.stored_weights import PartWeights, made_weights, read_weights

_GIB = 1 << 30
_T5_OF_SD3, _ENCODERS = "text_encoder_3", "text_encoder"
# Least room for activations, communication buffers and the libraries; what a batch needs, profiling finds.
_DEVICE_ROOM, _RANK_ROOM = 1 * _GIB, 64 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """What is loaded, and how, by settings of these names."""

    dtype: str
    load_t5: bool
    keeps_text_encoders: bool = True

    def parts(self, stored: Sequence[PartWeights]) -> list[PartWeights]:
        """Those of all stored parts that are loaded."""
        return [
            part
            for part in stored
            if (self.load_t5 or part.name != _T5_OF_SD3)
            and (self.keeps_text_encoders or not part.name.startswith(_ENCODERS))
        ]


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device, its free bytes, and whether its rank keeps the text encoders there."""

    device: str
    free_bytes: int
    keeps_text_encoders: bool = True


@dataclass(frozen=True, slots=True)
class _Room:
    """Free bytes of some memory, what a layout needs of it, and which settings could change that."""

    where: str
    free_bytes: int
    need: Callable[[Layout], int]
    ways_out: Mapping[str, Callable[[Layout], Layout]]


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
    stored = _weights(directory, settings)

    def need(layout: Layout) -> int:
        parts = layout.parts(stored)
        copies = [(1 if p.is_mapped_as(layout.dtype) else ranks) * p.loaded_bytes(layout.dtype) for p in parts]
        return sum(copies) + ranks * _RANK_ROOM

    free_bytes = _free_host_bytes() if free_bytes is None else free_bytes
    _check(directory, stored, Layout(dtype, settings.load_t5), _Room("this machine", free_bytes, need, _WAYS_OUT))


def check_device_memory(directory: Path, settings: ModelSettings, dtype: str, memory: DeviceMemory) -> None:
    """Check that one rank can load the model onto its device.

    Raises:
        ConfigurationError: it does not fit; says what would.
    """
    stored = _weights(directory, settings)

    def need(layout: Layout) -> int:
        return sum(part.loaded_bytes(layout.dtype) for part in layout.parts(stored)) + _DEVICE_ROOM

    ways_out = {**_WAYS_OUT, "model.text_encoder_ranks: 0": lambda layout: replace(layout, keeps_text_encoders=False)}
    layout = Layout(dtype, settings.load_t5, memory.keeps_text_encoders)
    _check(directory, stored, layout, _Room(memory.device, memory.free_bytes, need, ways_out))


def _weights(directory: Path, settings: ModelSettings) -> Sequence[PartWeights]:
    return made_weights(directory) if settings.random_weights else read_weights(directory)


_WAYS_OUT: Mapping[str, Callable[[Layout], Layout]] = {
    "model.dtype: bfloat16": lambda layout: replace(layout, dtype="bfloat16"),
    "model.load_t5: false": lambda layout: replace(layout, load_t5=False),
}


def _check(directory: Path, stored: Sequence[PartWeights], layout: Layout, room: _Room) -> None:
    needed = room.need(layout)
    if needed <= room.free_bytes:
        return
    sizes = ", ".join(f"{part.name} {_gib(part.loaded_bytes(layout.dtype))}" for part in layout.parts(stored))
    raise ConfigurationError(
        f"{directory}: {_gib(needed)} needed in {layout.dtype} ({sizes}), {_gib(room.free_bytes)} free on "
        f"{room.where}; what would fit: {_what_would_fit(layout, room)}"
    )


def _what_would_fit(layout: Layout, room: _Room) -> str:
    """The settings of which the fewest need to change."""
    for count in range(1, len(room.ways_out) + 1):
        fitting = {}
        for names in combinations(room.ways_out, count):
            changed = layout
            for name in names:
                changed = room.ways_out[name](changed)
            if room.need(changed) <= room.free_bytes:
                fitting[" with ".join(names)] = room.need(changed)
        if fitting:
            return " or ".join(f"{names} ({_gib(needed)})" for names, needed in fitting.items())
    return "more free memory or a smaller model"


def _free_host_bytes() -> int:
    """What the machine could give, or what is left to this container."""
    free, left = int(psutil.virtual_memory().available), memory_left_bytes()
    return free if left is None else min(free, left)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
