"""Tells of denoising steps once they are done on the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tetriserve_backend.domain import Request
from tetriserve_backend.executor.device_time import Mark
from tetriserve_backend.executor.models.base import DiffusionModel
from tetriserve_backend.executor.tensors import HostCopier, Product
from tetriserve_backend.executor.wire import HostTensor

OnStep = Callable[[str, int, tuple[HostTensor, ...]], None]
"""Called with a request's id, the index of a step that is done, and the preview in one tensor, or none."""

PREVIEW = "preview"


@dataclass(frozen=True, slots=True)
class DoneStep:
    """Step `step_index` took the latent of `request` from `before` to `after`."""

    request: Request
    step_index: int
    before: torch.Tensor
    after: torch.Tensor


class StepReports:
    """The reports of one segment on its lead rank.

    On CUDA a step's report waits until the next one has been launched, so that the device
    never runs dry because of it. A preview does make the device wait.
    """

    def __init__(self, model: DiffusionModel, copier: HostCopier, device: torch.device, on_step: OnStep) -> None:
        self._model, self._copier, self._device, self._on_step = model, copier, device, on_step
        self._waiting: list[tuple[Mark, DoneStep]] = []

    def launched(self, steps: list[DoneStep]) -> None:
        """These steps have been called for, after all earlier ones."""
        told, self._waiting = self._waiting, [(Mark(self._device), step) for step in steps]
        self._tell(told)
        if self._device.type != "cuda":
            self.flush()

    def flush(self) -> None:
        """Tell of the last ones too."""
        told, self._waiting = self._waiting, []
        self._tell(told)

    def _tell(self, told: list[tuple[Mark, DoneStep]]) -> None:
        for mark, step in told:
            mark.wait()
            request = step.request
            preview: tuple[HostTensor, ...] = ()
            if request.preview:
                pixels = self._model.preview(request, step.step_index, step.before, step.after)
                preview = self._copier.copy([Product(request.request_id, PREVIEW, pixels)])
            self._on_step(request.request_id, step.step_index, preview)
