"""The parent's message socket: frames to and from named ranks, on the asyncio loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq

from tetriserve_backend.executor import wire

OnMessage = Callable[[str, wire.Message, tuple[wire.HostTensor, ...]], None]

_log = logging.getLogger(__name__)


class MessageServer:
    """A router at a local socket; ranks come to it under the names that they were given.

    Args:
        on_message: called on the loop with the name of the rank, the message and its tensors.
    """

    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, endpoint: str) -> None:
        """Listen at an `ipc://` endpoint, in a directory that only this user can enter."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(endpoint)
        self._loop.add_reader(self._socket.FD, self._drain)

    def send(self, name: str, message: wire.Message, tensors: Sequence[wire.HostTensor] = ()) -> None:
        """Send to a rank that has been heard of; to one that is gone nothing is sent."""
        if self._socket is None or self._loop is None:
            return
        try:
            self._socket.send_multipart([name.encode(), *wire.encode(message, tensors)], copy=False)
        except zmq.ZMQError as error:
            # The rank has just died, which its end as a process will tell, or is not there yet.
            _log.debug("%s to %s: %s", message.kind, name, error)
        # The descriptor tells of changes only, and sending may have swallowed one.
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._socket is not None and self._loop is not None and self._context is not None:
            self._loop.remove_reader(self._socket.FD)
            self._socket.close()
            self._context.term()
        self._socket = None

    def _drain(self) -> None:
        while self._socket is not None and self._socket.poll(0, zmq.POLLIN):
            name, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            try:
                message, tensors = wire.decode(frames)
            except wire.WireError as error:
                _log.error("from %r: %s", name.bytes, error)
                continue
            self._on_message(name.bytes.decode(errors="replace"), message, tensors)
