"""The model `denoise`: holds the engine of all served models; decoupled, as a request may get many responses."""

import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.engine.metrics import Metric
from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.triton_adapter.build import build_serving
from tetriserve_backend.triton_adapter.denoise_server import Call, DenoiseServer
from tetriserve_backend.triton_adapter.environment_names import CONTROL_TOKEN_VARIABLE
from tetriserve_backend.triton_adapter.metrics import TritonMetrics
from tetriserve_backend.triton_adapter.model_io import (
    begin_each,
    input_tensors,
    int_tensor,
    log_to_triton,
    read_settings,
    text_input,
    text_tensor,
)
from tetriserve_backend.triton_adapter.request_checks import max_text_bytes
from tetriserve_backend.triton_adapter.runtime_dir import model_socket
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.serving import ServingThread
from tetriserve_backend.triton_adapter.stub import pb_utils

_GONE_CLIENT_POLL_S = 0.5
_log = logging.getLogger(__name__)


class TritonPythonModel:
    """Decodes Triton's requests and posts them to the engine's loop."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the ranks and the engine; Triton reports the model ready when this returns.

        Raises:
            TetriserveError: the configuration is wrong or a rank could not start.
        """
        start_death_watch()
        log_to_triton()
        settings = read_settings(args)
        assets = Path(args["model_repository"]) / "latency_tables"
        self._thread = ServingThread(lambda: build_serving(settings, assets, model_socket()))
        try:
            serving = self._thread.start()
        except Exception as error:
            _log.error("could not start: %s", error)
            raise
        self._responder = ThreadPoolExecutor(1, thread_name_prefix="respond")
        self._server = DenoiseServer(
            serving,
            _make_response,
            self._responder,
            control_token=os.environ.get(CONTROL_TOKEN_VARIABLE, ""),
            drain_timeout_s=settings.engine.drain_timeout_s,
            limits=settings.request,
        )
        self._engine, self._max_text_bytes = serving.engine, max_text_bytes(settings.request)
        self._metrics, self._figures = TritonMetrics(pb_utils), tuple[Metric, ...]()
        self._is_stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_clients, name="watch-clients", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to the engine; the answers go through response senders."""
        begin_each(requests, self._begin)

    def finalize(self) -> None:
        """Stop the engine and the ranks; whoever still waits gets an error."""
        self._is_stopping.set()
        self._watcher.join()
        self._metrics.close()
        self._thread.stop()
        self._responder.shutdown()

    def _begin(self, request: Any, sender: SafeSender) -> None:
        tensors = input_tensors(request)
        call = Call(
            op=text_input(tensors, "op", self._max_text_bytes, "generate"),
            request=text_input(tensors, "request", self._max_text_bytes),
            target=text_input(tensors, "target", self._max_text_bytes),
            sender=sender,
        )
        self._thread.post(partial(self._server.perform, call))

    def _watch_clients(self) -> None:
        while not self._is_stopping.wait(_GONE_CLIENT_POLL_S):
            try:
                for request_id in self._server.find_gone_clients():
                    self._thread.post(partial(self._server.cancel, request_id))
            except Exception:
                _log.exception("looking for gone clients failed")
            self._show_metrics()

    def _show_metrics(self) -> None:
        """Show what was found out the last time, and have it found out anew."""
        try:
            self._metrics.publish(self._figures)
        except Exception:
            _log.exception("showing metrics failed")
        self._thread.post(self._take_figures)

    def _take_figures(self) -> None:
        self._figures = self._engine.metrics()


def _make_response(pixels: npt.NDArray[np.uint8], step: int, metadata: str) -> Any:
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("pixels", pixels), int_tensor("step", step), text_tensor("metadata", metadata)]
    )
