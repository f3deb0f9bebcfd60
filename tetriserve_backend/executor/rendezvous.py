"""Where the ranks of a world find each other."""

import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

LOOPBACK = "127.0.0.1"
_TIMEOUT_KEY = "exception_dump"


def host_rendezvous() -> "TCPStore":
    """A store that outlives any rank, at a port that only this machine can reach."""
    from torch._C._distributed_c10d import TCPStore  # noqa: PLC0415  (takes seconds: not at import)

    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60),
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def forget_timeouts(store: "TCPStore") -> None:
    """Take back that a collective timed out, which NCCL's watchdog leaves under no prefix, for all ranks to come."""
    store.delete_key(_TIMEOUT_KEY)
