"""The four operations of `denoise` on a serving engine."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import InvalidRequestError, LatencyTableError, Request, TetriserveError
from tetriserve_backend.engine.async_engine import Answer
from tetriserve_backend.triton_adapter.final_metadata import final_metadata
from tetriserve_backend.triton_adapter.request_checks import load_spec
from tetriserve_backend.triton_adapter.request_spec import RequestSpec
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.serving import Serving
from tetriserve_backend.triton_adapter.settings import RequestDefaults

_log = logging.getLogger(__name__)
_NO_PIXELS = np.zeros((0, 0, 3), dtype=np.uint8)
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
        self._serving, self._make_response, self._responder = serving, make_response, responder
        self._control_token, self._drain_timeout_s, self._limits = control_token, drain_timeout_s, limits
        self._senders: dict[str, SafeSender] = {}
        self._draining: asyncio.Task[None] | None = None

    def perform(self, call: Call) -> None:
        """Begin one call; on the loop."""
        try:
            match call.op:
                case "generate":
                    self._generate(call)
                case "cancel":
                    self._tell(call.sender, {"cancelled": self._serving.engine.cancel(call.target)})
                case "status":
                    self._tell(call.sender, {**self._serving.facts, **self._serving.engine.status()})
                case "drain":
                    self._drain(call)
                case _:
                    raise InvalidRequestError("op", f"got '{call.op[:40]}'", ", ".join(OPS))
        except Exception as error:
            if not isinstance(error, TetriserveError):
                _log.exception("op %s failed", call.op)
            self._responder.submit(call.sender.send_error, error)

    def find_gone_clients(self) -> list[str]:
        """Ids of the requests whose clients went away (only seen for direct calls of `denoise`). Any thread."""
        return [request_id for request_id, sender in list(self._senders.items()) if sender.is_cancelled()]

    def cancel(self, request_id: str) -> None:
        """Stop a request; on the loop."""
        self._serving.engine.cancel(request_id)

    def _generate(self, call: Call) -> None:
        spec = load_spec(call.request, self._limits, time.monotonic())
        try:
            self._serving.check_resolution(spec.height, spec.width)
        except LatencyTableError as error:
            allowed = str(error).partition("expected ")[2] or str(error)
            raise InvalidRequestError("height, width", f"got {spec.height}x{spec.width}", allowed) from error
        listener = _Listener(self, spec, call.sender)
        self._senders.setdefault(spec.request_id, call.sender)
        self._serving.engine.submit(spec.to_request(), listener)

    def _drain(self, call: Call) -> None:
        if not (self._control_token and hmac.compare_digest(call.target.encode(), self._control_token.encode())):
            raise InvalidRequestError("target", "not the control token", "the token that the server was started with")
        if self._draining is None:
            self._draining = asyncio.create_task(self._serving.engine.drain(self._drain_timeout_s))
        self._draining.add_done_callback(lambda _: self._tell(call.sender, {"drained": True}))

    def _tell(self, sender: SafeSender, facts: dict[str, object]) -> None:
        self._responder.submit(self._send, sender, _NO_PIXELS, 0, facts)

    def report_progress(self, sender: SafeSender, step: int, facts: dict[str, object]) -> None:
        """Send a progress message: `step` steps are done."""
        self._responder.submit(self._send, sender, _NO_PIXELS, step, facts, False)

    def report_end(self, sender: SafeSender, spec: RequestSpec, result: Answer | TetriserveError) -> None:
        """Send the image or the error, and forget the request."""
        if self._senders.get(spec.request_id) is sender:
            del self._senders[spec.request_id]
        if isinstance(result, TetriserveError):
            self._responder.submit(sender.send_error, result)
        else:
            metadata = final_metadata(result, spec)
            self._responder.submit(self._send, sender, result.pixels, spec.num_inference_steps, metadata)

    def _send(
        self, sender: SafeSender, pixels: npt.NDArray[np.uint8], step: int, facts: dict[str, object], last: bool = True
    ) -> None:
        try:
            response = self._make_response(pixels, step, json.dumps(facts))
            (sender.send_last if last else sender.send)(response)
        except Exception as error:
            _log.exception("a response could not be made")
            sender.send_error(error)


class _Listener:
    """Tells one client about its request."""

    def __init__(self, server: DenoiseServer, spec: RequestSpec, sender: SafeSender) -> None:
        self._server, self._spec, self._sender = server, spec, sender

    def on_progress(self, request: Request, step_index: int) -> None:
        step = step_index + 1
        facts: dict[str, object] = {
            "request_id": request.request_id,
            "step": step,
            "num_inference_steps": request.num_steps,
        }
        self._server.report_progress(self._sender, step, facts)

    def on_finish(self, answer: Answer) -> None:
        self._server.report_end(self._sender, self._spec, answer)

    def on_error(self, request: Request, error: TetriserveError) -> None:
        self._server.report_end(self._sender, self._spec, error)
