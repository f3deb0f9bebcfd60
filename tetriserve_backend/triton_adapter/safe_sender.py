"""A response sender that cannot crash Triton or leave a client without an answer."""

import threading
from typing import Any

from tetriserve_backend.domain import RequestFailedError
from tetriserve_backend.triton_adapter.errors import error_response


class SafeSender:
    """Wraps Triton's response sender for use from any thread.

    Two facts of tritonserver 2.51 make it necessary: asking a sender whether its request is cancelled after
    the final response segfaults the whole server, and a sender that is dropped without a final response
    leaves its client waiting for ever.

    Args:
        pb_utils: Triton's module (an argument, so that this class can be tested without a stub).
        sender: what `request.get_response_sender()` gave.
    """

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._pb_utils, self._sender = pb_utils, sender
        self._lock = threading.Lock()
        self._is_done = False

    @property
    def is_done(self) -> bool:
        """Whether the final response is out; everything sent later is dropped."""
        return self._is_done

    def send(self, response: Any) -> None:
        """Send a response that is not the last one."""
        with self._lock:
            if not self._is_done:
                self._try_send(response, flags=0)

    def send_last(self, response: Any) -> None:
        """Send the last response."""
        with self._lock:
            if self._is_done:
                return
            self._is_done = True
            self._try_send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send_error(self, error: BaseException) -> None:
        """Answer with an error, as the last response."""
        self.send_last(error_response(self._pb_utils, error))

    def is_cancelled(self) -> bool:
        """Whether the client is gone; false once the last response is out."""
        with self._lock:
            return not self._is_done and bool(self._sender.is_cancelled())

    def _try_send(self, response: Any, flags: int) -> None:
        try:
            self._sender.send(response, flags=flags)
        except Exception as error:
            # Mostly a full /dev/shm: nothing was sent, and a small error still fits.
            self._is_done = True
            self._sender.send(
                error_response(self._pb_utils, RequestFailedError(f"the response could not be sent: {error}")),
                flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )

    def __del__(self) -> None:
        if not getattr(self, "_is_done", True):
            self.send_error(RequestFailedError("the server lost track of this request"))
