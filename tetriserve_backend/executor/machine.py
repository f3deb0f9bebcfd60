"""What this machine has to compute with, and what the settings make of it."""

import os
from dataclasses import dataclass
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.container import core_quota

_CPU_WORLD_SIZE = 2
_GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the ranks run on.

    Attributes:
        device: `cpu` or `cuda`.
        has_core_per_thread: ranks on CPU have a core for each of their threads, of which a container may use all.
    """

    device: str
    world_size: int
    has_core_per_thread: bool = False


def surely_without_gpu(device: str) -> bool:
    """Whether `device` (`auto`, `cpu` or `cuda`) means the CPU, as far as can be told without importing torch."""
    return device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in _GPU_DEVICE_FILES))


def inspect_machine(device: str, executor: ExecutorSettings) -> Machine:
    """Decide what `auto` and None leave open.

    Raises:
        ConfigurationError: the settings ask for what this machine does not have.
    """
    gpus = 0 if surely_without_gpu(device) else _count_gpus()
    device = device if device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise ConfigurationError("model.device: 'cuda', but no GPU is visible; allowed here: auto, cpu")
    world_size = executor.world_size or (gpus if device == "cuda" else _CPU_WORLD_SIZE)
    if device == "cuda" and world_size > gpus:
        raise ConfigurationError(f"executor.world_size: {world_size}; allowed: 1 to {gpus}, the visible GPUs")
    cores = len(os.sched_getaffinity(0))
    threads = world_size * executor.threads_per_rank
    if device == "cpu" and executor.pin_ranks and threads > cores:
        raise ConfigurationError(
            f"executor.pin_ranks: {world_size} ranks of {executor.threads_per_rank} threads; allowed: as many as there "
            f"are cores, {cores}"
        )
    return Machine(device, world_size, device == "cpu" and threads <= min(cores, core_quota() or cores))


def decide_dtype(settings: ModelSettings, device: str) -> str:
    """The dtype of a model on `device` (`cpu` or `cuda`), one of torch's names.

    Raises:
        ConfigurationError: the model is meant for another device.
    """
    if settings.device not in ("auto", device):
        raise ConfigurationError(
            f"model.device: '{settings.device}', but the ranks, which all models share, are on '{device}'"
        )
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if device == "cuda" else "float32"


def check_pace(settings: ModelSettings, device: str) -> None:
    """Refuse to hold the pace of a model on `device` (`cpu` or `cuda`) where that has better means.

    Raises:
        ConfigurationError: says which.
    """
    if settings.pace_table is not None and device != "cpu":
        raise ConfigurationError(
            f"model.pace_table: '{settings.pace_table}'; allowed: on CPU. GPUs keep to a pace with locked clocks "
            "(nvidia-smi --lock-gpu-clocks)"
        )


def decide_attention_backend(name: str, device: str, dtype: str) -> str:
    """The attention backend that `name` means on `device` (`cpu` or `cuda`) for a dtype by torch's name, in lower case.

    `auto` means that xfuser chooses, where it can: what it takes on CUDA needs a half-precision dtype.
    """
    is_open = name.lower() == "auto" and not (device == "cuda" and dtype in ("bfloat16", "float16"))
    return "sdpa" if is_open else name.lower()


def _count_gpus() -> int:
    import torch  # noqa: PLC0415  (takes seconds, and often is not needed)

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
