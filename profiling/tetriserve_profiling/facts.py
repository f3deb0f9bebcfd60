"""What an executor tells of itself, as a profile needs it."""

from collections.abc import Mapping
from typing import Any

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_profiling.bench import ProfiledExecutor
from tetriserve_profiling.record import Identity
from tetriserve_profiling.schedule import Mode, Modes


def identity_of(executor: ProfiledExecutor, settings: Mapping[str, Any]) -> Identity:
    """Model, machine and software; `settings` is all else that the times depend on.

    Raises:
        LatencyTableError: the ranks run on different devices, so that no single table would be true for them.
    """
    return Identity(
        model=executor.model_name,
        build=executor.model_directory.name,
        device=_one_device(executor.device_names),
        world_size=executor.world_size,
        dtype=executor.dtype,
        text_tokens=executor.facts.text_tokens,
        software=executor.software,
        settings=settings,
        guided=executor.facts.supports_negative_prompt,
        shared_counts=executor.facts.shared_counts,
    )


def modes_of(executor: ProfiledExecutor) -> Modes:
    """By image tokens: each degree that has a group and divides what sequence parallelism cuts.

    A model with classifier-free guidance can have each of its two passes on half of the ranks as well.
    """
    facts, sizes = executor.facts, usable_degrees(executor.world_size)

    def modes(tokens: int) -> list[Mode]:
        degrees = usable_degrees(executor.world_size, *facts.shared_counts.values(), tokens)
        shared = [Mode(degree) for degree in degrees]
        if facts.supports_negative_prompt:
            shared += [Mode(degree, cfg=2) for degree in degrees if 2 * degree in sizes]
        return sorted(shared, key=lambda mode: (mode.ranks, mode.cfg))

    return modes


def _one_device(names: Mapping[int, str]) -> str:
    if len(set(names.values())) != 1:
        by_rank = ", ".join(f"rank {rank}: {name}" for rank, name in sorted(names.items()))
        raise LatencyTableError(
            f"the ranks run on different devices ({by_rank}); fix: profile on ranks of one kind, "
            "chosen by CUDA_VISIBLE_DEVICES"
        )
    return next(iter(names.values()))
