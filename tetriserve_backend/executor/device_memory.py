"""How much memory a piece of work takes on a device that counts it."""

import torch


class PeakMemory:
    """The most that this process has allocated on its GPU since this was made; a CPU does not count it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def in_bytes(self) -> int | None:
        """The peak; None where the device does not tell."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
