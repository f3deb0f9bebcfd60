"""A response sender that cannot crash Triton or leave a client without an answer."""

import logging
import threading
import time
from typing import Any

from tetriserve_backend.domain import RequestFailedError
from tetriserve_backend.triton_adapter.errors import error_response

_log = logging.getLogger(__name__)
_FIRST_RETRY_S, _MAX_RETRY_S = 0.05, 5.0


class SafeSender:
    """Wraps Triton's response sender for use from any thread.

    Two facts of tritonserver 2.51 make it necessary: asking a sender whether its request is cancelled after
    the final response segfaults the whole server, and a sender that is dropped without a final response
    leaves its client waiting for ever. Where not even an error can be sent at once (shared memory is full),
    a thread of its own tries again until it can.

    Args:
        pb_utils: Triton's module (an argument, so that this class can be tested without a stub).
        sender: what `request.get_response_sender()` gave.
    """

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._pb_utils, self._sender = pb_utils, sender
        self._lock = threading.Lock()
        self._is_done = False

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
            problem = RequestFailedError(f"the response could not be sent: {error}")
            if not self._send_problem(problem):
                _log.error("%s, nor could this error: trying again", problem)
                threading.Thread(target=self._keep_trying, args=(problem,), name="last-words", daemon=True).start()

    def _send_problem(self, problem: RequestFailedError) -> bool:
        try:
            # Made anew each time, because making it takes shared memory too.
            response = error_response(self._pb_utils, problem)
            self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            return False
        return True

    def _keep_trying(self, problem: RequestFailedError) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            time.sleep(pause_s)
            if self._send_problem(problem):
                return
            pause_s = min(_MAX_RETRY_S, 2 * pause_s)

    def __del__(self) -> None:
        if not getattr(self, "_is_done", True):
            self.send_error(RequestFailedError("the server lost track of this request"))
