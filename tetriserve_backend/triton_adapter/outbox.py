"""Sends what a request gets, in order and off the engine's loop."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.triton_adapter.safe_sender import SafeSender

_log = logging.getLogger(__name__)

NO_PIXELS: npt.NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)


class Outbox:
    """Makes responses and sends them; its methods return at once.

    Args:
        make_response: builds Triton's response from pixels, step and metadata.
        responder: one thread, so that responses stay in order; sending blocks.
    """

    def __init__(self, make_response: Callable[[npt.NDArray[np.uint8], int, str], Any], responder: Executor) -> None:
        self._make_response, self._responder = make_response, responder

    def post(
        self,
        sender: SafeSender,
        facts: Mapping[str, object],
        pixels: npt.NDArray[np.uint8] = NO_PIXELS,
        step: int = 0,
        *,
        last: bool = True,
    ) -> None:
        """Send one response; `pixels` has shape (height, width, 3)."""
        self._responder.submit(self._send, sender, facts, pixels, step, last)

    def post_error(self, sender: SafeSender, error: BaseException) -> None:
        """Answer with an error, after what was posted before."""
        self._responder.submit(sender.send_error, error)

    def _send(
        self, sender: SafeSender, facts: Mapping[str, object], pixels: npt.NDArray[np.uint8], step: int, last: bool
    ) -> None:
        try:
            response = self._make_response(pixels, step, json.dumps(facts))
            (sender.send_last if last else sender.send)(response)
        except Exception as error:
            _log.exception("a response could not be made")
            sender.send_error(error)
