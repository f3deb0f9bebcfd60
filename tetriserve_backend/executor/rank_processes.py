"""The parent's end of the nursery: start and kill ranks, hear of their deaths."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tetriserve_backend.domain import ServerError
from tetriserve_backend.executor.python_process import child_environment, python_command

_log = logging.getLogger(__name__)
_NURSERY_MODULE = "tetriserve_backend.executor.nursery"
_END_TIMEOUT_S = 1.0
# A process that holds a GPU takes seconds to go.
_KILL_GRACE_S = 30.0
_UNLESS_SET = {
    # All ranks are on this host, so their connections need not leave it.
    "cpu": {"GLOO_SOCKET_IFNAME": "lo"},
    # A timeout ends a segment. Torch would have it end every process that uses the same store later.
    "cuda": {"NCCL_SOCKET_IFNAME": "lo", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"},
}


class RankProcesses:
    """Ranks by name, as children of one nursery process.

    Args:
        device: `cpu` or `cuda`.
        threads: intra-op threads of each rank.
        scratch: a directory that the nursery removes when it ends.
        on_exit: called on the loop with the name of a rank that ended and its exit status;
            every rank that was started is reported once, also when the nursery itself dies.
    """

    def __init__(self, device: str, threads: int, scratch: Path, on_exit: Callable[[str, int], None]) -> None:
        self._device, self._threads, self._scratch = device, threads, scratch
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._alive: set[str] = set()
        self._doomed: dict[str, asyncio.TimerHandle] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._pids: dict[str, int] = {}

    async def open(self) -> None:
        """Start the nursery, unless there is one.

        Raises:
            ServerError: it could not be started.
        """
        async with self._starting:
            if self._writer is None:
                self._writer = await self._start_nursery()

    async def spawn(self, name: str, spec: dict[str, Any]) -> None:
        """Start a rank; a new nursery too if the last one died."""
        await self.open()
        self._alive.add(name)
        self._empty.clear()
        self._order({"order": "spawn", "name": name, "spec": spec})

    def kill(self, name: str) -> None:
        """Kill a rank; `on_exit` follows, also when the nursery does not obey: then it dies with all ranks."""
        if name in self._alive and name not in self._doomed:
            self._order({"order": "kill", "name": name})
            self._doomed[name] = asyncio.get_running_loop().call_later(_KILL_GRACE_S, self._kill_nursery, name)

    def pid(self, name: str) -> int | None:
        """The process id of a running rank."""
        return self._pids.get(name)

    async def wait_until_empty(self, timeout_s: float) -> None:
        """Wait for the ranks that are about to end."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)

    async def close(self) -> None:
        """Kill every rank and end the nursery; `on_exit` is not called any more. Idempotent."""
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
            self._listener = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            await asyncio.to_thread(_await_end, self._process)
            self._process = None
        for timer in self._doomed.values():
            timer.cancel()
        self._doomed.clear()
        self._alive.clear()
        self._pids.clear()

    async def _start_nursery(self) -> asyncio.StreamWriter:
        ours, theirs = socket.socketpair()
        with theirs:
            command = python_command(_NURSERY_MODULE)
            command += [str(theirs.fileno()), self._device, str(self._scratch)]
            environment = child_environment(**self._environment())
            try:
                self._process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            except OSError as error:
                ours.close()
                raise ServerError(f"the process that starts the ranks could not be started: {error}") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        self._listener = asyncio.create_task(self._listen(reader))
        return writer

    def _environment(self) -> dict[str, str]:
        environment = {
            # xfuser logs to stdout, which may be somebody's protocol.
            "LOG_LEVEL": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "DIFFUSERS_VERBOSITY": "error",
        }
        if self._device == "cpu":
            environment |= {"OMP_NUM_THREADS": str(self._threads), "CUDA_VISIBLE_DEVICES": ""}
        return environment | {n: os.environ.get(n, value) for n, value in _UNLESS_SET[self._device].items()}

    def _order(self, order: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(order).encode() + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "spawned":
                    self._pids[event["name"]] = event["pid"]
                else:
                    self._gone(event["name"], event["code"])
        # The nursery is dead, and the kernel has killed its ranks: these, and none that is born from here on.
        orphans, process = sorted(self._alive), self._process
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if process is not None:
            status = await asyncio.to_thread(_await_end, process)
            for name in orphans:
                self._gone(name, status)

    def _kill_nursery(self, name: str) -> None:
        if self._process is not None:
            _log.error("rank process %s does not end: killing the process that starts ranks, and all of them", name)
            self._process.kill()

    def _gone(self, name: str, status: int) -> None:
        self._pids.pop(name, None)
        if (timer := self._doomed.pop(name, None)) is not None:
            timer.cancel()
        if name in self._alive:
            self._alive.remove(name)
            if not self._alive:
                self._empty.set()
            self._on_exit(name, status)


def _await_end(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
