"""From layers to seconds on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.calibration import AchievedShares, Calibration, Software
from tetriserve_profiling.analytic.gpu import Gpu
from tetriserve_profiling.analytic.layers import Layer


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU with its software: tells how long layers take.

    A pass takes as long as the device computes and waits for its neighbours, or as long as the host takes to
    launch it all, whichever is longer. A linear layer takes as long as its arithmetic or the reading of its
    weights; what is between the products is bound by memory.
    """

    gpu: Gpu
    achieved: AchievedShares
    software: Software

    @classmethod
    def of(cls, gpu: Gpu, calibration: Calibration, software: str) -> "Machine":
        """Put together by name.

        Raises:
            ConfigurationError: there is no such software.
        """
        return cls(gpu, calibration.achieved_on(gpu), calibration.software_named(software))

    def seconds(self, layers: Sequence[Layer], ranks: int = 1) -> float:
        """Of one pass of which this rank of `ranks` runs these layers.

        Raises:
            ConfigurationError: nothing joins that many GPUs.
        """
        device_s = sum(layer.count * (self._compute_s(layer) + self._exchange_s(layer, ranks)) for layer in layers)
        return max(device_s, sum(layer.count * self._host_s(layer) for layer in layers))

    def _compute_s(self, layer: Layer) -> float:
        flop_per_s, bytes_per_s = self.gpu.bf16_flop_per_s, self.gpu.memory_bytes_per_s * self.achieved.memory
        linear_s = layer.matmul_flop / (flop_per_s * self.achieved.matmul)
        linear_s += layer.convolution_flop / (flop_per_s * self.achieved.convolution)
        return (
            max(linear_s, layer.weight_bytes / bytes_per_s)
            + layer.attention_flop / (flop_per_s * self.achieved.attention)
            + layer.elementwise_bytes * self.software.elementwise_share / bytes_per_s
        )

    def _exchange_s(self, layer: Layer, ranks: int) -> float:
        """Every rank sends an equal part to each of its peers, over all links at a time."""
        if not layer.collectives:
            return 0.0
        part, reached, transfer_s, latency_us = layer.exchanged_bytes / ranks, 1, 0.0, 0.0
        for link in self.gpu.links:
            if reached < ranks:
                peers = min(link.gpus, ranks) - reached
                transfer_s = max(transfer_s, part * peers / link.bytes_per_s)
                reached, latency_us = reached + peers, link.latency_us
        if reached < ranks:
            raise ConfigurationError(
                f"gpu {self.gpu.name}: its links join at most {self.gpu.max_gpus} GPUs, not {ranks}; describe how more "
                "are joined by a further entry of links"
            )
        return transfer_s + 1e-6 * layer.collectives * (latency_us + self.software.collective_us)

    def _host_s(self, layer: Layer) -> float:
        # Compiled code has one kernel between any two products.
        launches = min(layer.launches, 2 * layer.products) if self.software.is_compiled else layer.launches
        return 1e-6 * (launches * self.software.launch_us + layer.collectives * self.software.collective_host_us)
