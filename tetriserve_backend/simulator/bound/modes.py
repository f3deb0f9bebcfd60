"""The ways in which a shape can make progress, as seen by a fluid that may mix them."""

from collections.abc import Iterable
from dataclasses import dataclass

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable


@dataclass(frozen=True, slots=True)
class FluidMode:
    """One request's share of a forward pass: `gpus` of the world (k/b in a batch of b on k ranks), steps per second."""

    gpus: float
    steps_per_s: float


@dataclass(frozen=True, slots=True)
class FluidShape:
    """What one shape costs at least.

    Attributes:
        modes: modes worth mixing, from the cheapest to the fastest: each next one buys its extra speed
            dearer than the one before. Every other mode is a mixture of these (and of idling) or worse.
        encode_s, decode_s: least seconds before the first step and behind the last, dispatch included.
        lead_in_s: dispatch of the first denoise segment.
        single_gpu_s: least GPU-seconds that encode and decode take from the world.
    """

    modes: tuple[FluidMode, ...]
    encode_s: float
    decode_s: float
    lead_in_s: float
    single_gpu_s: float

    @property
    def fastest_steps_per_s(self) -> float:
        """Steps per second of the fastest mode."""
        return self.modes[-1].steps_per_s


def fluid_shape(table: LatencyTable, height: int, width: int, world_size: int, *, batching: bool) -> FluidShape:
    """The costs of images of `height` × `width` pixels in a world of `world_size` ranks.

    Args:
        table: what work costs.
        height: pixels.
        width: pixels.
        world_size: no group can be wider.
        batching: count the batches that the table has; without, only a forward pass of one image.

    Raises:
        LatencyTableError: the shape lies outside the profiled range.
    """
    batches = sorted({entry["batch"] for entry in table.to_dict()["step"]}) if batching else [1]
    modes = []
    for degree in table.degrees(height, width):
        for batch in batches:
            if degree > world_size or not _has_step(table, height, width, degree, batch):
                continue
            modes.append(FluidMode(degree / batch, 1 / table.step_s(height, width, degree, batch)))
    encode_s = table.encode_s() + table.dispatch_s
    decode_s = table.decode_s(height, width) + table.dispatch_s
    return FluidShape(
        modes=_worth_mixing(modes),
        encode_s=encode_s,
        decode_s=decode_s,
        lead_in_s=table.dispatch_s,
        single_gpu_s=encode_s + decode_s,
    )


def _has_step(table: LatencyTable, height: int, width: int, degree: int, batch: int) -> bool:
    try:
        table.step_s(height, width, degree, batch)
    except LatencyTableError:
        return False
    return True


def _worth_mixing(modes: Iterable[FluidMode]) -> tuple[FluidMode, ...]:
    """The lower convex hull of GPUs over speed, from idling to the fastest mode."""
    hull = [FluidMode(0.0, 0.0)]
    for mode in sorted(modes, key=lambda mode: (mode.steps_per_s, -mode.gpus)):
        while hull and mode.gpus <= hull[-1].gpus and len(hull) > 1:
            hull.pop()
        while len(hull) > 1 and _price(hull[-2], hull[-1]) >= _price(hull[-2], mode):
            hull.pop()
        if mode.steps_per_s > hull[-1].steps_per_s:
            hull.append(mode)
    return tuple(hull[1:])


def _price(slower: FluidMode, faster: FluidMode) -> float:
    """GPUs per extra step per second."""
    return (faster.gpus - slower.gpus) / (faster.steps_per_s - slower.steps_per_s)
