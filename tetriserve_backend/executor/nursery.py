"""The process that forks the ranks, so that a new one starts in milliseconds with everything imported.

It is the parent of all ranks: single-threaded, free of the host process's `__main__`, signals and
threads, and gone as soon as its own parent is. A rank asks the kernel to be killed with it, so no
rank outlives the server however that dies. On CUDA nothing is imported before the fork, since a
CUDA context does not survive one.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from tetriserve_backend.executor.death_watch import die_with_parent

_POLL_S = 0.5
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORKER_MODULE = "tetriserve_backend.executor.worker"
_FAMILIES = ("tetriserve_backend.executor.models.flux", "tetriserve_backend.executor.models.sd3")


class Nursery:
    """Obeys JSON lines from the parent: `spawn` and `kill` a named rank; tells what `spawned` and `exited`."""

    def __init__(self, link: socket.socket, scratch: Path) -> None:
        self._link = link
        self._scratch = scratch
        self._parent_pid = os.getppid()
        self._pids: dict[str, int] = {}
        self._received = b""

    def serve(self) -> None:
        """Work until the parent hangs up or dies; then kill every rank."""
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_reader, False)
        os.set_blocking(wake_writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_writer)
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            selector.register(wake_reader, selectors.EVENT_READ)
            while os.getppid() == self._parent_pid:
                ready = {key.fd for key, _ in selector.select(_POLL_S)}
                if wake_reader in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_reader, 4096)
                self._reap()
                if self._link.fileno() in ready and not self._obey():
                    break
        self._end()

    def _obey(self) -> bool:
        """Do what has arrived; false when the parent has hung up."""
        try:
            received = self._link.recv(1 << 16)
        except ConnectionError:
            return False
        if not received:
            return False
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order["order"] == "spawn":
                self._spawn(order["name"], order["spec"])
            elif (pid := self._pids.get(order["name"])) is not None:
                os.kill(pid, signal.SIGKILL)
        return True

    def _spawn(self, name: str, spec: dict[str, Any]) -> None:
        nursery_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_rank(nursery_pid, spec)
        self._pids[name] = pid
        self._tell({"event": "spawned", "name": name, "pid": pid})

    def _become_rank(self, nursery_pid: int, spec: dict[str, Any]) -> None:
        status = 1
        try:
            die_with_parent(nursery_pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._link.close()
            importlib.import_module(_WORKER_MODULE).run_rank(spec)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Never back into the loop of the nursery, and no clean-up of what belongs to it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        for name, pid in list(self._pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._pids[name]
                self._tell({"event": "exited", "name": name, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, event: dict[str, Any]) -> None:
        # A parent that is gone is noticed by the loop.
        with contextlib.suppress(OSError):
            self._link.sendall(json.dumps(event).encode() + b"\n")

    def _end(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        shutil.rmtree(self._scratch, ignore_errors=True)


def preload() -> None:
    """Import all that a rank on CPU needs, and keep it out of the way of later garbage collections."""
    from tetriserve_backend.executor import xfuser_cpu  # noqa: PLC0415  (not before a fork on CUDA)

    xfuser_cpu.bring_up("cpu")
    for family in _FAMILIES:
        importlib.import_module(family)
    importlib.import_module(_WORKER_MODULE)
    gc.collect()
    gc.freeze()


def main(link_fd: int, device: str, scratch: str) -> None:
    """Serve the socket `link_fd`; `scratch` is a directory to remove at the end."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    link = socket.socket(fileno=link_fd)
    nursery = Nursery(link, Path(scratch))
    if device == "cpu":
        preload()
    nursery.serve()


if __name__ == "__main__":
    # Under its real name, so that the module exists once.
    from tetriserve_backend.executor.nursery import main as serve

    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])
