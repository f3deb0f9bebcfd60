"""Every rank is reported once, whatever becomes of the process that starts ranks."""

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tetriserve_backend.executor import rank_processes
from tetriserve_backend.executor.rank_processes import RankProcesses

NO_SPEC: dict[str, Any] = {}
"""A rank that is told nothing ends at once, with status 1."""


class Witness:
    def __init__(self, scratch: Path) -> None:
        self.exits: list[tuple[str, int]] = []
        # Where the nursery forks bare processes, which is quick.
        self.processes = RankProcesses("cuda", 1, scratch, lambda name, status: self.exits.append((name, status)))

    def nursery(self) -> psutil.Process:
        assert self.processes._process is not None
        return psutil.Process(self.processes._process.pid)

    async def wait_for(self, count: int) -> None:
        deadline_s = time.monotonic() + 30.0
        while len(self.exits) < count:
            assert time.monotonic() < deadline_s, self.exits
            await asyncio.sleep(0.02)


def test_rank_of_a_new_nursery_is_not_taken_for_one_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await_end = rank_processes._await_end

    def slowly(process: Any) -> int:
        time.sleep(0.5)
        return await_end(process)

    async def scenario() -> None:
        witness = Witness(tmp_path / "scratch")
        await witness.processes.open()
        witness.nursery().suspend()
        await witness.processes.spawn("old", NO_SPEC)
        monkeypatch.setattr(rank_processes, "_await_end", slowly)
        witness.nursery().kill()
        await asyncio.sleep(0.2)
        await witness.processes.spawn("new", NO_SPEC)
        await witness.wait_for(2)
        assert witness.exits == [("old", -9), ("new", 1)]
        await witness.processes.close()

    asyncio.run(scenario())


def test_nursery_that_does_not_obey_is_killed_with_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_processes, "_KILL_GRACE_S", 0.3)

    async def scenario() -> None:
        witness = Witness(tmp_path / "scratch")
        await witness.processes.open()
        witness.nursery().suspend()
        await witness.processes.spawn("a", NO_SPEC)
        witness.processes.kill("a")
        await witness.wait_for(1)
        assert witness.exits == [("a", -9)]
        await witness.processes.close()

    asyncio.run(scenario())
