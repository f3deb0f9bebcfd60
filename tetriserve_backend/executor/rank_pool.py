"""The ranks of one world as living things: born, lost, born again under a new name."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tetriserve_backend.domain import ServerError
from tetriserve_backend.executor import wire
from tetriserve_backend.executor.message_server import MessageServer
from tetriserve_backend.executor.rank_processes import RankProcesses
from tetriserve_backend.executor.worker_spec import SPEC_ADAPTER, ModelSpec, RankSpec

_log = logging.getLogger(__name__)
_MAX_FAILED_STARTS = 5
_FIRST_BACK_OFF_S = 0.5
_STOP_GRACE_S = 1.0
_LEAST_RESPAWN_S, _RESPAWN_FACTOR = 60.0, 3.0
_SOCKET = "ranks.sock"
_LONGEST_SOCKET_PATH = 100


class RankListener(Protocol):
    """Who is told of the ranks, on the loop."""

    def on_message(self, rank: int, message: wire.Message, tensors: tuple[wire.HostTensor, ...]) -> None:
        """A rank has something to say."""

    def on_lost(self, rank: int, reason: str) -> None:
        """A rank died; another is on its way."""

    def on_given_up(self, rank: int, reason: str) -> None:
        """A rank died again and again at its start; no other follows."""


@dataclass(slots=True)
class _Rank:
    """One place in the world.

    Attributes:
        name: tells its present process from earlier ones.
        failed_starts: since it was last good.
        deadline: ends the present process unless it is up by then.
    """

    name: str
    births: int = 0
    failed_starts: int = 0
    alive: bool = False
    born_s: float = 0.0
    deadline: asyncio.TimerHandle | None = None

    def disarm(self) -> None:
        """Call the deadline off."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class RankPool:
    """Starts ranks, replaces those that die, and carries messages to and fro.

    A rank that dies before `mark_good` counts as a failed start: the next attempt waits longer, and
    after a few the rank is given up. A rank that is not up in time is killed.

    Args:
        listener: is told of the ranks.
        respawn_timeout_s: how long a rank that replaces another may load; None derives it from the first ones.
    """

    def __init__(self, listener: RankListener, respawn_timeout_s: float | None = None) -> None:
        self._listener = listener
        self._respawn_timeout_s = respawn_timeout_s
        self._slowest_start_s = self._models_load_s = 0.0
        self._server = MessageServer(self._on_message)
        self._processes: RankProcesses | None = None
        self._scratch: Path | None = None
        self._spec: RankSpec | None = None
        self._ranks: list[_Rank] = []
        self._births: set[asyncio.Task[None]] = set()
        self._closing = False

    async def open(self, device: str, threads: int) -> str:
        """Listen, and start the process that starts ranks; the endpoint for their `RankSpec`."""
        self._scratch = Path(tempfile.mkdtemp(prefix="tetriserve-", dir=_scratch_parent()))
        endpoint = f"ipc://{self._scratch / _SOCKET}"
        self._server.open(endpoint)
        self._processes = RankProcesses(device, threads, self._scratch, self._on_exit)
        await self._processes.open()
        return endpoint

    def start(self, spec: RankSpec) -> None:
        """Start every rank of the world; `spec` holds what they have in common."""
        self._spec = spec
        self._ranks = [_Rank(name="") for _ in range(spec.world_size)]
        for rank in range(spec.world_size):
            self._give_birth(rank, delay_s=0.0)

    def send(self, rank: int, message: wire.Message, tensors: Sequence[wire.HostTensor] = ()) -> None:
        """Send to a rank; nothing happens if it is dead."""
        if self._ranks[rank].alive:
            self._server.send(self._ranks[rank].name, message, tensors)

    def kill(self, rank: int) -> None:
        """Kill a rank; `on_lost` follows."""
        if self._processes is not None:
            self._processes.kill(self._ranks[rank].name)

    def set_models(self, models: Iterable[ModelSpec], load_s: float) -> None:
        """What ranks hold that are born from now on; loading it all takes about `load_s` seconds."""
        if self._spec is not None:
            self._spec = replace(self._spec, models=tuple(models))
        self._models_load_s = load_s

    def mark_up(self, rank: int) -> None:
        """The rank holds all that it should."""
        place = self._ranks[rank]
        place.disarm()
        if place.births == 1:
            self._slowest_start_s = max(self._slowest_start_s, time.monotonic() - place.born_s)

    def mark_good(self, rank: int) -> None:
        """The rank has come so far that an early death would be another matter than a failed start."""
        self._ranks[rank].failed_starts = 0

    def pids(self) -> dict[int, int]:
        """Process ids of the living ranks."""
        if self._processes is None:
            return {}
        found = {n: self._processes.pid(rank.name) for n, rank in enumerate(self._ranks)}
        return {n: pid for n, pid in found.items() if pid is not None}

    async def close(self) -> None:
        """End every rank and remove every trace. Idempotent."""
        self._closing = True
        for birth in self._births:
            birth.cancel()
        for number, rank in enumerate(self._ranks):
            rank.disarm()
            self.send(number, wire.Stop())
        if self._processes is not None:
            await self._processes.wait_until_empty(_STOP_GRACE_S)
            await self._processes.close()
            self._processes = None
        self._server.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _give_birth(self, rank: int, delay_s: float) -> None:
        birth = asyncio.create_task(self._birth(rank, delay_s))
        self._births.add(birth)
        birth.add_done_callback(self._births.discard)

    async def _birth(self, rank: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if self._closing or self._processes is None or self._spec is None:
            return
        place = self._ranks[rank]
        place.births += 1
        place.name, place.alive = f"{rank}.{place.births}", True
        place.born_s = time.monotonic()
        limit_s = self._load_limit_s(place, self._spec.start_timeout_s)
        place.deadline = asyncio.get_running_loop().call_later(limit_s, self._on_deadline, rank, limit_s)
        spec = replace(self._spec, rank=rank, name=place.name)
        try:
            await self._processes.spawn(place.name, SPEC_ADAPTER.dump_python(spec, mode="json"))
        except (OSError, ServerError) as error:
            _log.error("rank %d could not be started: %s", rank, error)
            self._on_exit(place.name, 1)

    def _load_limit_s(self, place: _Rank, start_timeout_s: float) -> float:
        if place.births == 1:
            return start_timeout_s
        derived_s = max(_LEAST_RESPAWN_S, _RESPAWN_FACTOR * (self._slowest_start_s + self._models_load_s))
        return self._respawn_timeout_s or min(derived_s, start_timeout_s)

    def _on_deadline(self, rank: int, limit_s: float) -> None:
        _log.error("killing rank %d: it had not loaded its models within %g s", rank, limit_s)
        self.kill(rank)

    def _on_message(self, name: str, message: wire.Message, tensors: tuple[wire.HostTensor, ...]) -> None:
        rank = self._find(name)
        # What an earlier process of this rank had still sent is of no use.
        if rank is not None and not self._closing:
            self._listener.on_message(rank, message, tensors)

    def _on_exit(self, name: str, status: int) -> None:
        rank = self._find(name)
        if rank is None or self._closing:
            return
        place = self._ranks[rank]
        place.alive = False
        place.disarm()
        reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        _log.warning("rank %d is gone (%s)", rank, reason)
        if place.failed_starts >= _MAX_FAILED_STARTS:
            self._listener.on_given_up(rank, f"{place.failed_starts} starts failed in a row, the last: {reason}")
            return
        delay_s = _FIRST_BACK_OFF_S * 2 ** (place.failed_starts - 1) if place.failed_starts else 0.0
        place.failed_starts += 1
        self._give_birth(rank, delay_s)
        self._listener.on_lost(rank, reason)

    def _find(self, name: str) -> int | None:
        return next((n for n, rank in enumerate(self._ranks) if rank.name == name and rank.alive), None)


def _scratch_parent() -> str | None:
    """None for the usual place; the path of a local socket must be short."""
    usual = len(f"{tempfile.gettempdir()}/tetriserve-12345678/{_SOCKET}")
    return "/tmp" if usual > _LONGEST_SOCKET_PATH else None
