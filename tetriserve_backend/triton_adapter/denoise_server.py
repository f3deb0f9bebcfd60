"""The four operations of `denoise` on a serving engine."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import DuplicateRequestError, InvalidRequestError, TetriserveError
from tetriserve_backend.triton_adapter.generation import Generation
from tetriserve_backend.triton_adapter.model_fit import fitted_to_model, served_model
from tetriserve_backend.triton_adapter.outbox import Outbox
from tetriserve_backend.triton_adapter.request_checks import load_spec
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.serving import Serving
from tetriserve_backend.triton_adapter.settings import RequestDefaults

_log = logging.getLogger(__name__)
OPS = ("generate", "cancel", "status", "drain")


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request of `denoise`, decoded."""

    op: str
    request: str
    target: str
    sender: SafeSender


class DenoiseServer:
    """Performs calls on the engine's loop; every call is answered, whatever happens.

    Args:
        serving: the engine and what is known about it.
        make_response: builds Triton's response from pixels, step and metadata.
        responder: one thread that sends the responses: in order, and off the loop, because sending blocks.
        control_token: what `target` must be for `drain`; empty forbids it.
        drain_timeout_s: how long `drain` lets running requests finish.
        limits: what a request may ask for.
    """

    def __init__(
        self,
        serving: Serving,
        make_response: Callable[[npt.NDArray[np.uint8], int, str], Any],
        responder: Executor,
        *,
        control_token: str,
        drain_timeout_s: float,
        limits: RequestDefaults,
    ) -> None:
        self._serving, self._outbox = serving, Outbox(make_response, responder)
        self._control_token, self._drain_timeout_s, self._limits = control_token, drain_timeout_s, limits
        self._generations: dict[str, Generation] = {}
        self._draining: asyncio.Task[None] | None = None

    def perform(self, call: Call) -> None:
        """Begin one call; on the loop."""
        try:
            match call.op:
                case "generate":
                    self._generate(call)
                case "cancel":
                    self._outbox.post(call.sender, {"cancelled": self._cancel(call.target)})
                case "status":
                    self._outbox.post(call.sender, self._serving.status())
                case "drain":
                    self._drain(call)
                case _:
                    raise InvalidRequestError("op", f"got '{call.op[:40]}'", ", ".join(OPS))
        except Exception as error:
            if not isinstance(error, TetriserveError):
                _log.exception("op %s failed", call.op)
            self._outbox.post_error(call.sender, error)

    def find_gone_clients(self) -> list[str]:
        """Ids of the requests whose clients went away (only seen for direct calls of `denoise`). Any thread."""
        return [request_id for request_id, generation in list(self._generations.items()) if generation.is_abandoned()]

    def cancel(self, request_id: str) -> None:
        """Stop a request with all its images; on the loop."""
        self._cancel(request_id)

    def _cancel(self, request_id: str) -> bool:
        generation = self._generations.get(request_id)
        return generation is not None and generation.cancel()

    def _generate(self, call: Call) -> None:
        spec = load_spec(call.request, self._limits, time.monotonic())
        model = self._serving.models[served_model(spec.model, list(self._serving.models))]
        spec = fitted_to_model(spec, model.facts, model.check_resolution)
        name = spec.request_id
        if name in self._generations:
            raise DuplicateRequestError(name)
        generation = Generation(
            spec, call.sender, self._serving.engine, self._outbox, lambda: self._generations.pop(name, None)
        )
        self._generations[name] = generation
        generation.begin()

    def _drain(self, call: Call) -> None:
        if not (self._control_token and hmac.compare_digest(call.target.encode(), self._control_token.encode())):
            raise InvalidRequestError("target", "not the control token", "the token that the server was started with")
        if self._draining is None:
            self._draining = asyncio.create_task(self._serving.engine.drain(self._drain_timeout_s))
        self._draining.add_done_callback(lambda _: self._outbox.post(call.sender, {"drained": True}))
