"""The stand-in's end of the socket: has the engine serve a model until it is released."""

import contextlib
import logging
import math
import socket
import threading
import time
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError, ServerError, UnavailableError
from tetriserve_backend.triton_adapter.model_orders import (
    Done,
    LoadOrder,
    Message,
    Refused,
    UnloadOrder,
    decode,
    encode,
)
from tetriserve_backend.triton_adapter.settings import ServedModelSettings

_log = logging.getLogger(__name__)
_RETRY_S, _LONGEST_PAUSE_S = 0.1, 5.0
# Triton starts both at the same time, on a machine that may be busy.
_PATIENCE_S = 60.0


class ModelLease:
    """Holds one model in the engine. When the engine is replaced by another one, the model is ordered there anew.

    Args:
        path: the engine's socket.
        settings: of the model.
    """

    def __init__(self, path: Path, settings: ServedModelSettings) -> None:
        self._path, self._settings = path, settings
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._is_released = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="model-lease", daemon=True)

    def take(self) -> None:
        """Return when the engine serves the model.

        Raises:
            ServerError: there is no engine, or it cannot load the model.
        """
        self._link = self._order(_PATIENCE_S)
        self._watcher.start()

    def release(self) -> None:
        """Return when the engine serves the model no more. Idempotent."""
        with self._lock:
            if self._link is None or self._is_released.is_set():
                return
            self._is_released.set()
            self._link.send(UnloadOrder())
        self._watcher.join()
        self._link.close()

    def _order(self, patience_s: float) -> "_Link":
        link = _Link(self._path, patience_s)
        link.send(LoadOrder(settings=self._settings))
        answer = link.receive()
        if isinstance(answer, Done):
            return link
        link.close()
        if isinstance(answer, Refused):
            raise ConfigurationError(answer.reason)
        raise UnavailableError("the engine ended before it had loaded the model")

    def _watch(self) -> None:
        """Wait until the model is given back; look for a new engine whenever the old one is gone."""
        while self._link is not None and self._link.receive() is None and not self._is_released.is_set():
            _log.warning("the engine that served %s is gone; waiting for another", self._settings.name)
            self._link.close()
            if not self._find_another():
                return

    def _find_another(self) -> bool:
        """Whether there is a new engine and it serves the model."""
        pause_s, give_up_s = _RETRY_S, math.inf
        while not self._is_released.wait(pause_s):
            try:
                self._take_over(self._order(0.0))
            except UnavailableError:
                continue
            except ServerError as error:
                # The ranks of the engine before hold their memory until they have ended.
                now_s = time.monotonic()
                give_up_s = min(give_up_s, now_s + _PATIENCE_S)
                if now_s >= give_up_s:
                    _log.error("%s is not served: %s", self._settings.name, error)
                    return False
                _log.warning("%s is not served yet: %s", self._settings.name, error)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            return True
        return False

    def _take_over(self, link: "_Link") -> None:
        with self._lock:
            self._link = link
            if self._is_released.is_set():
                link.send(UnloadOrder())


class _Link:
    """A connection to the engine.

    Args:
        path: of its socket.
        patience_s: how long to wait for somebody to listen there.

    Raises:
        UnavailableError: nobody does.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        give_up_s = time.monotonic() + patience_s
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                self._socket.close()
                if time.monotonic() >= give_up_s:
                    raise UnavailableError("there is no engine: Triton has not loaded the model `denoise`") from error
            time.sleep(_RETRY_S)
        self._lines = self._socket.makefile("rb")

    def send(self, message: Message) -> None:
        """Send, unless the other end is gone, which `receive` tells."""
        with contextlib.suppress(OSError):
            self._socket.sendall(encode(message))

    def receive(self) -> Message | None:
        """The next message; None when the other end is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        return decode(line) if line else None

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()
