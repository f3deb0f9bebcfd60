"""The model `tetriserve_infer`: one request, one response, for plain `/infer`."""

import json
import logging
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tetriserve_backend.domain import RequestFailedError, UnavailableError
from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.triton_adapter.errors import to_triton_error
from tetriserve_backend.triton_adapter.model_io import (
    begin_each,
    int_tensor,
    log_to_triton,
    read_settings,
    request_id_of,
    request_parameters,
    text_tensor,
)
from tetriserve_backend.triton_adapter.request_fields import PROBE_PARAMETER
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.stub import pb_utils

_log = logging.getLogger(__name__)
_ENSEMBLE = "tetriserve"
_ENGINE_MODEL = "denoise"
_OUTPUTS = ["image", "step", "metadata"]
_PROGRESS_INPUTS = ("stream_progress", "preview")


class TritonPythonModel:
    """Calls the ensemble for each request on a thread of its own and hands its images on together.

    Cancellation does not reach through BLS or an ensemble, so one more thread looks which clients are
    gone and tells `denoise` by its `op`.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the threads."""
        start_death_watch()
        log_to_triton()
        self._settings = read_settings(args).front
        self._workers = ThreadPoolExecutor(self._settings.max_concurrent, thread_name_prefix="front")
        self._waiting: dict[str, tuple[str, SafeSender]] = {}
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_clients, name="watch-clients", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to a thread; the answers go through response senders."""
        begin_each(requests, self._begin)

    def finalize(self) -> None:
        """Wait for the requests that are still here."""
        self._is_stopping.set()
        self._watcher.join()
        self._workers.shutdown()

    def _begin(self, request: Any, sender: SafeSender) -> None:
        request_id = request_id_of(request)
        parameters = request_parameters(request)
        if PROBE_PARAMETER in parameters:
            sender.send_last(
                pb_utils.InferenceResponse(
                    [text_tensor("image", b""), int_tensor("step", 0), text_tensor("metadata", "{}")]
                )
            )
            return
        call = pb_utils.InferenceRequest(
            model_name=_ENSEMBLE,
            requested_output_names=_OUTPUTS,
            # Progress could not be told in one response.
            inputs=[tensor for tensor in request.inputs() if tensor.name() not in _PROGRESS_INPUTS],
            request_id=request_id,
            parameters=parameters,
        )
        # By a key of our own: two requests may claim the same id, and only one of them will get it.
        key = uuid.uuid4().hex
        with self._lock:
            if len(self._waiting) >= self._settings.max_concurrent:
                raise UnavailableError(f"{self._settings.max_concurrent} requests are waiting already; try again later")
            self._waiting[key] = (request_id, sender)
        self._workers.submit(self._serve, key, call, sender)

    def _serve(self, key: str, call: Any, sender: SafeSender) -> None:
        try:
            sender.send_last(_call_ensemble(call))
        except Exception as error:
            sender.send_error(error)
        finally:
            with self._lock:
                self._waiting.pop(key, None)

    def _watch_clients(self) -> None:
        while not self._is_stopping.wait(self._settings.cancel_poll_s):
            with self._lock:
                waiting = list(self._waiting.items())
            for key, (request_id, sender) in waiting:
                try:
                    # Until the engine knows the request there is nothing to cancel: the next look tries again.
                    if sender.is_cancelled() and _cancel(request_id):
                        with self._lock:
                            self._waiting.pop(key, None)
                except Exception:
                    _log.exception("request %s could not be cancelled", request_id)


def _call_ensemble(call: Any) -> Any:
    """One response with all images that the ensemble makes, or its error with the right code again."""
    answers = []
    for response in call.exec(decoupled=True):
        if response.has_error():
            return pb_utils.InferenceResponse(error=to_triton_error(pb_utils, response.error().message()))
        if response.output_tensors():
            answers.append(response.output_tensors())
    if not answers:
        raise RequestFailedError("the ensemble answered nothing")
    return pb_utils.InferenceResponse(answers[0] if len(answers) == 1 else _joined(answers))


def _joined(answers: list[list[Any]]) -> list[Any]:
    """Tensors with one element for each image, by index: the ensemble sends each as soon as it is done."""
    images = [{tensor.name(): tensor.as_numpy() for tensor in answer} for answer in answers]
    images.sort(key=lambda image: int(json.loads(image["metadata"][0])["image_index"]))
    return [pb_utils.Tensor(name, np.concatenate([image[name] for image in images])) for name in _OUTPUTS]


def _cancel(request_id: str) -> bool:
    """Whether the engine knew the request and has stopped it."""
    call = pb_utils.InferenceRequest(
        model_name=_ENGINE_MODEL,
        requested_output_names=["metadata"],
        inputs=[text_tensor("op", "cancel"), text_tensor("target", request_id)],
    )
    cancelled = False
    for response in call.exec(decoupled=True):
        if response.has_error():
            raise RequestFailedError(response.error().message())
        for tensor in response.output_tensors():
            cancelled = bool(json.loads(tensor.as_numpy()[0])["cancelled"])
    return cancelled
