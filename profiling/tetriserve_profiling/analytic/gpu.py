"""What is known of a GPU and of how several of them are joined."""

from functools import cache
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field, model_validator

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.catalog import Description, read_description, shipped_file, shipped_names

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
_Positive: TypeAlias = Annotated[float, Field(gt=0)]


class Link(Description):
    """One kind of connection between GPUs.

    Attributes:
        gpus: it joins each aligned group of this many GPUs: 2 for an NVLink bridge, 8 for a switch.
        bandwidth_gb_per_s: per GPU and direction, as the datasheet has it.
        achieved: share of it that an all-to-all gets.
        latency_us: of one small collective.
    """

    name: str
    gpus: Annotated[int, Field(ge=2)]
    bandwidth_gb_per_s: _Positive
    achieved: Share
    latency_us: Annotated[float, Field(ge=0)]

    @property
    def bytes_per_s(self) -> float:
        """Bytes that a GPU sends in a second while it receives as many."""
        return self.bandwidth_gb_per_s * 1e9 * self.achieved


class Achieved(Description):
    """Shares of the datasheet's rates that kernels get; None takes the calibrated GPU's share.

    Attributes:
        matmul: of the dense bf16 rate, in linear layers.
        attention: of the same, in fused attention.
        convolution: of the same, in the VAE.
        memory: of the memory bandwidth, in elementwise kernels and for weights.
    """

    matmul: Share | None = None
    attention: Share | None = None
    convolution: Share | None = None
    memory: Share | None = None


class Gpu(Description):
    """A GPU by its datasheet.

    Attributes:
        device: the name that CUDA has for it, by which a latency table is found.
        bf16_dense_tflops: without sparsity.
        links: fastest first; each joins more GPUs than the one before.
    """

    name: str
    device: str
    bf16_dense_tflops: _Positive
    memory_gb: _Positive
    memory_bandwidth_gb_per_s: _Positive
    links: tuple[Link, ...] = ()
    achieved: Achieved = Achieved()

    @model_validator(mode="after")
    def _links_widen(self) -> "Gpu":
        sizes = [link.gpus for link in self.links]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"links: expected each to join more GPUs than the one before, got {sizes}")
        return self

    @property
    def bf16_flop_per_s(self) -> float:
        """Dense bf16 operations per second at best."""
        return self.bf16_dense_tflops * 1e12

    @property
    def memory_bytes_per_s(self) -> float:
        """Bytes of device memory read or written per second at best."""
        return self.memory_bandwidth_gb_per_s * 1e9

    @property
    def max_gpus(self) -> int:
        """The largest group that its links join."""
        return max((link.gpus for link in self.links), default=1)


def load_gpu(name_or_path: str) -> Gpu:
    """A shipped description by its name, or the user's own by the path of a YAML file.

    Raises:
        ConfigurationError: there is no such name or file, or the file is wrong.
    """
    for name in shipped_names("gpus"):
        if name.lower() == name_or_path.lower():
            return _shipped_gpu(name)
    if not Path(name_or_path).is_file():
        allowed = ", ".join(shipped_names("gpus"))
        raise ConfigurationError(f"gpu: '{name_or_path}' is not known; allowed: {allowed}, or the path of a YAML file")
    return read_description(Path(name_or_path), Gpu)


@cache
def _shipped_gpu(name: str) -> Gpu:
    return read_description(shipped_file("gpus", f"{name}.yaml"), Gpu)
