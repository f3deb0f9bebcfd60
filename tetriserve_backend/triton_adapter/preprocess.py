"""The model `preprocess`: checks a request, fills in defaults, stamps arrival and deadline."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.triton_adapter.errors import error_response
from tetriserve_backend.triton_adapter.model_io import (
    input_tensors,
    read_settings,
    request_id_of,
    request_parameters,
    text_tensor,
)
from tetriserve_backend.triton_adapter.request_fields import PROBE_PARAMETER, build_spec, check_parameters
from tetriserve_backend.triton_adapter.request_spec import dump_spec
from tetriserve_backend.triton_adapter.stub import pb_utils

_DRAWN_SEED_BITS = 32


class TritonPythonModel:
    """Turns public inputs into `op` and `request` for `denoise`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the defaults and limits."""
        start_death_watch()
        self._defaults = read_settings(args).request

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one bad request does not touch its neighbours."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        arrival_s = time.monotonic()
        try:
            request_id = request_id_of(request)
            parameters = request_parameters(request)
            if PROBE_PARAMETER in parameters:
                return self._respond("status", "")
            check_parameters(parameters, self._defaults.ignored_parameters)
            spec = build_spec(
                input_tensors(request),
                self._defaults,
                request_id=request_id,
                arrival_s=arrival_s,
                draw_seed=lambda: secrets.randbits(_DRAWN_SEED_BITS),
            )
            return self._respond("generate", dump_spec(spec))
        except Exception as error:
            return error_response(pb_utils, error)

    def _respond(self, op: str, request: str) -> Any:
        return pb_utils.InferenceResponse([text_tensor("op", op), text_tensor("request", request)])
