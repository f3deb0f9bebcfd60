"""Tensors between the members of a group, each a thread here; who waits in vain is told so."""

import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from tetriserve_backend.executor.group_memory import SIZE_BYTES, GroupMemory

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(os, "pidfd_open"), reason="ranks share no memory there"
)
WAIT_S = 30.0
Make = Callable[..., list[GroupMemory]]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def make_members() -> Iterator[Make]:
    """Makes the members of a group: all in this process, or the last in one that a test may end."""
    with ExitStack() as at_end:

        def make(size: int, timeout_s: float = WAIT_S, last_pid: int | None = None) -> list[GroupMemory]:
            fd = os.memfd_create("test")
            at_end.callback(os.close, fd)
            os.ftruncate(fd, SIZE_BYTES)
            pids = [os.getpid()] * (size - 1) + [last_pid or os.getpid()]
            ranks = range(size)
            members = []
            for rank in ranks:
                pidfds = {other: os.pidfd_open(pids[other]) for other in ranks if other != rank}
                members.append(GroupMemory(mmap.mmap(fd, SIZE_BYTES), ranks, rank, pidfds, timeout_s))
            for member in members:
                at_end.callback(member.close)
            return members

        yield make


def random_tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype) for rows in range(1, 200)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_member_gets_what_the_root_has_whoever_that_is(
    make_members: Make, pool: ThreadPoolExecutor, size: int, dtype: torch.dtype
) -> None:
    sent = random_tensors(dtype)

    def take_part(own: int, member: GroupMemory) -> list[torch.Tensor]:
        held = []
        for number, tensor in enumerate(sent):
            root = number * 3 % size if number % 5 else 0
            held.append(tensor.clone() if own == root else torch.full_like(tensor, torch.nan))
            member.broadcast(held[-1], root)
        return held

    for held in pool.map(take_part, range(size), make_members(size)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(held, sent, strict=True))


def test_root_does_not_write_over_what_a_slow_member_still_reads(make_members: Make, pool: ThreadPoolExecutor) -> None:
    root, quick, slow = make_members(3)
    first, second = torch.ones(8), torch.full((8,), 2.0)

    def send() -> None:
        root.broadcast(first, 0)
        root.broadcast(second, 0)

    sending = pool.submit(send)
    received = torch.zeros(8)
    quick.broadcast(received, 0)
    time.sleep(0.05)
    assert not sending.done()
    slow.broadcast(received := torch.zeros(8), 0)
    assert torch.equal(received, first)
    sending.result(WAIT_S)


def waits_for_the_last(members: list[GroupMemory], pool: ThreadPoolExecutor) -> "Future[None]":
    return pool.submit(members[0].broadcast, torch.zeros(8), len(members) - 1)


def test_who_waits_for_a_member_that_leaves_fails_at_once(make_members: Make, pool: ThreadPoolExecutor) -> None:
    members = make_members(3)
    waiting = waits_for_the_last(members, pool)
    members[1].close()
    with pytest.raises(ConnectionError, match="rank 1 has left"):
        waiting.result(WAIT_S)


def test_who_waits_for_a_member_that_dies_fails_at_once(make_members: Make, pool: ThreadPoolExecutor) -> None:
    # It ends by itself should the test fail.
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        waiting = waits_for_the_last(make_members(2, last_pid=other.pid), pool)
        time.sleep(0.05)
        assert not waiting.done()
        other.kill()
        with pytest.raises(ConnectionError, match=r"rank 1 .* is dead"):
            waiting.result(WAIT_S)


def test_what_a_member_has_sent_before_it_left_still_arrives(make_members: Make) -> None:
    one, other = make_members(2)
    sent, received = torch.arange(8.0), torch.zeros(8)
    other.broadcast(sent, 1)
    other.close()
    one.broadcast(received, 1)
    assert torch.equal(received, sent)
    with pytest.raises(ConnectionError, match="has left"):
        one.broadcast(received, 1)


def test_waiting_ends_with_the_timeout(make_members: Make) -> None:
    members = make_members(2, timeout_s=0.05)
    with pytest.raises(TimeoutError, match=r"timed out: rank 1 kept rank 0 waiting for 0\.05 s"):
        members[0].broadcast(torch.zeros(8), 1)


def test_only_what_fits_is_transferred() -> None:
    assert GroupMemory.fits(torch.empty(64 << 20, dtype=torch.uint8))
    assert not GroupMemory.fits(torch.empty((64 << 20) + 1, dtype=torch.uint8))
    assert not GroupMemory.fits(torch.empty((32 << 20) + 1, dtype=torch.bfloat16))


MEMBER = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from tetriserve_backend.executor import group_memory

rank, size, port, what = *map(int, sys.argv[1:4]), sys.argv[4]
store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
def refuse(*_):
    raise PermissionError("not here")
before = len(os.listdir("/proc/self/fd"))
if what == "no-pidfd" and rank == 2:
    os.pidfd_open = refuse
if what == "no-room" and rank == 0:
    os.ftruncate = refuse
if what == "old-python" and rank == 1:
    del os.pidfd_open
if what == "older-python" and rank == 0:
    del os.memfd_create
if what == "foreign" and rank == 1:
    # Another file where the memory should be, as in another name space of processes.
    os.open, opened = (lambda _, flags: opened(sys.argv[5], flags)), os.open
memory = group_memory.share_memory(dist.group.WORLD, range(size), rank, 60.0)
print("shared" if memory else "not shared")
if memory is not None:
    tensor = torch.full((1000,), float(rank))
    memory.broadcast(tensor, 1)
    print(tensor.unique().tolist())
    memory.close()
    del memory
print(len(os.listdir("/proc/self/fd")) - before)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("what", ["all-can", "no-pidfd", "no-room", "old-python", "older-python", "foreign"])
def test_processes_share_memory_if_all_can(what: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"mine")
    os.truncate(foreign, SIZE_BYTES)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    with ExitStack() as running:
        members = []
        for rank in range(3):
            command = [sys.executable, "-c", MEMBER, str(rank), "3", str(store.port), what, str(foreign)]
            member = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            members.append(running.enter_context(member))
        told = [member.communicate(timeout=60)[0].split() for member in members]
    # Nothing is left open either way.
    assert told == [["shared", "[1.0]", "0"] if what == "all-can" else ["not", "shared", "0"]] * 3
    assert foreign.read_bytes()[:8] == b"mine" + bytes(4)
