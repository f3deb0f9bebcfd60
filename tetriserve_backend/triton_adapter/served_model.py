"""The models `denoise_<name>`: while Triton has one loaded, the engine serves what it stands for."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.triton_adapter.model_io import log_to_triton, read_parameters, text_tensor
from tetriserve_backend.triton_adapter.model_lease import ModelLease
from tetriserve_backend.triton_adapter.runtime_dir import model_socket
from tetriserve_backend.triton_adapter.settings_sources import served_model_from_parameters
from tetriserve_backend.triton_adapter.stub import pb_utils

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """Stands for one served model. Images are asked for at `tetriserve`, which names the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Have the engine load the model; Triton reports it ready when this returns.

        Raises:
            TetriserveError: the settings are wrong, there is no engine, or it cannot load the model.
        """
        start_death_watch()
        log_to_triton()
        self._settings = served_model_from_parameters(read_parameters(args)).named()
        self._lease = ModelLease(model_socket(), self._settings)
        try:
            self._lease.take()
        except Exception as error:
            _log.error("%s cannot be served: %s", self._settings.name, error)
            raise

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tell what this stands for."""
        told = json.dumps({"model": self._settings.name, "path": self._settings.model.path})
        return [pb_utils.InferenceResponse([text_tensor("metadata", told)]) for _ in requests]

    def finalize(self) -> None:
        """Have the engine unload the model, once its running requests are done."""
        self._lease.release()
