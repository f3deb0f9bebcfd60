"""When work on a device is done, without waiting for it before one has to."""

import time

import torch


class Stopwatch:
    """The span of work on a device: by CUDA events, so that the host never waits between its ends.

    On CPU, work is done when its call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._start_s = self._end_s = 0.0
        if self._on_cuda:
            self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """What is called from now on counts."""
        self._start_s = time.monotonic()
        if self._on_cuda:
            self._start.record()

    def stop(self) -> None:
        """What is called from now on does not."""
        self._end_s = time.monotonic()
        if self._on_cuda:
            self._end.record()

    def span_s(self) -> tuple[float, float]:
        """Start and end on the monotonic clock, in seconds; waits until the work is done."""
        if not self._on_cuda:
            return self._start_s, self._end_s
        self._end.synchronize()
        end_s = time.monotonic()
        return end_s - 1e-3 * self._start.elapsed_time(self._end), end_s


class Mark:
    """A place in the order of work on a device."""

    def __init__(self, device: torch.device) -> None:
        """After everything that was called so far."""
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until everything before it is done."""
        if self._event is not None:
            self._event.synchronize()
