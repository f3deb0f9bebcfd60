"""Memory that the ranks of one group share, through which tensors go from one of them to the others.

On CPU most of what a message of a few hundred KB costs is waking the core that waits for it, so who waits here stays
awake.
"""

import contextlib
import logging
import mmap
import os
import platform
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_log = logging.getLogger(__name__)
_CAPACITY_BYTES = 64 << 20
"""Of one tensor; what has not been written takes no memory."""
SIZE_BYTES = mmap.PAGESIZE + _CAPACITY_BYTES
"""Of the memory of a group."""
_LINE = 8  # words: those of a rank have a cache line of their own
_DONE, _GONE = 0, 1  # which word of its line
_MAX_RANKS = mmap.PAGESIZE // (8 * _LINE)
_TURNS_PER_LOOK = 64
# So many turns take some 0.05 ms. If they take as long as this, another thread wants the core, and a thread that
# sleeps gets it back sooner than one that yields it.
_CONTENDED_S, _NAP_S = 1e-3, 5e-4
# A Python that was built on an old system lacks some of the calls.
_CANNOT = (OSError, AttributeError)
# Far more than segments are sent ahead: who waits longer is no longer in a hurry.
_AWAKE_S = 1.0


class GroupMemory:
    """The view that one rank has of such memory. All ranks of the group transfer the same tensors in the same order.

    Args:
        memory: shared by them, `SIZE_BYTES` long.
        ranks: of the group.
        rank: whose view this is.
        pidfds: descriptors of the other ranks' processes, by rank; closed with this.
        timeout_s: how long a transfer may take.
    """

    def __init__(
        self, memory: mmap.mmap, ranks: Sequence[int], rank: int, pidfds: Mapping[int, int], timeout_s: float
    ) -> None:
        self._words = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        self._data = torch.frombuffer(memory, dtype=torch.uint8, offset=mmap.PAGESIZE)
        self._lines = {member: index * _LINE for index, member in enumerate(ranks)}
        self._rank, self._timeout_s = rank, timeout_s
        self._pidfds = dict(pidfds)
        self._deaths = select.poll()
        for pidfd in pidfds.values():
            self._deaths.register(pidfd, select.POLLIN)
        self._count = 0

    @staticmethod
    def fits(tensor: torch.Tensor) -> bool:
        """Whether a tensor can be transferred; the same on all ranks."""
        return tensor.numel() * tensor.element_size() <= _CAPACITY_BYTES

    def broadcast(self, tensor: torch.Tensor, root: int) -> None:
        """Send `tensor`, contiguous, of rank `root` into `tensor` of every other rank.

        Raises:
            ConnectionError: a rank has left or is dead.
            TimeoutError: one is late.
        """
        deadline_s = time.monotonic() + self._timeout_s
        flat = tensor.view(-1).view(torch.uint8)
        shared = self._data[: flat.numel()]
        if root == self._rank:
            # What was there before may still be read.
            for member in self._pidfds:
                self._wait_for(member, self._count, deadline_s)
            shared.copy_(flat)
        else:
            self._wait_for(root, self._count + 1, deadline_s)
            flat.copy_(shared)
        self._count += 1
        self._words[self._lines[self._rank] + _DONE] = self._count

    def close(self) -> None:
        """Leave; who waits for this rank, or will, fails. Idempotent."""
        self._words[self._lines[self._rank] + _GONE] = 1
        while self._pidfds:
            _, pidfd = self._pidfds.popitem()
            os.close(pidfd)

    def _wait_for(self, member: int, count: int, deadline_s: float) -> None:
        """Wait until a rank is done with `count` transfers."""
        words, word = self._words, self._lines[member] + _DONE
        look_s = time.monotonic()
        nap_from_s = look_s + _AWAKE_S
        while True:
            for _ in range(_TURNS_PER_LOOK):
                if words[word] >= count:
                    return
                os.sched_yield()
            self._check_ranks()
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise TimeoutError(f"timed out: rank {member} kept rank {self._rank} waiting for {self._timeout_s:g} s")
            if now_s - look_s > _CONTENDED_S or now_s > nap_from_s:
                time.sleep(_NAP_S)
                now_s = time.monotonic()
            look_s = now_s

    def _check_ranks(self) -> None:
        for member in self._pidfds:
            if self._words[self._lines[member] + _GONE]:
                raise ConnectionError(f"rank {member} has left the group of ranks {tuple(self._lines)}")
        for pidfd, _ in self._deaths.poll(0):
            dead = next(member for member, known in self._pidfds.items() if known == pidfd)
            raise ConnectionError(f"rank {dead} of the group of ranks {tuple(self._lines)} is dead")


@dataclass(frozen=True, slots=True)
class _File:
    """Memory that a process has open as `fd`, and what tells it from other files."""

    fd: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Member:
    """A rank's process, and the memory if it has made some."""

    pid: int
    made: _File | None = None


def share_memory(process_group: Any, ranks: Sequence[int], rank: int, timeout_s: float) -> GroupMemory | None:
    """Make the memory of a group; all of its ranks call this at once, on one machine.

    Args:
        process_group: theirs, on CPU.
        ranks: of the group.
        rank: who calls.
        timeout_s: as for `GroupMemory`.

    Returns:
        None, on all ranks, where one of them cannot have it.
    """
    with contextlib.ExitStack() as at_end:
        makes_it = rank == ranks[0] and len(ranks) <= _MAX_RANKS
        own = _Member(os.getpid(), _make_memory(at_end) if makes_it else None)
        members: list[Any] = [None] * len(ranks)
        dist.all_gather_object(members, own, group=process_group)
        memory = _open_memory(dict(zip(ranks, members, strict=True)), rank, timeout_s)
        is_open = torch.tensor([memory is not None], dtype=torch.int64)
        dist.all_reduce(is_open, op=dist.ReduceOp.MIN, group=process_group)
    if memory is not None and not is_open:
        memory.close()
        return None
    return memory


def _make_memory(until: contextlib.ExitStack) -> _File | None:
    """Have memory `until` then, where the system and the processor are fit for it."""
    # A count that tells of data must not be seen before the data: only x86 promises that for plain stores.
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        fd = os.memfd_create("tetriserve-group")
        until.callback(os.close, fd)
        os.ftruncate(fd, SIZE_BYTES)
    except _CANNOT as error:
        _log.warning("hand-overs go by gloo, which is slower: no memory to share (%s)", error)
        return None
    status = os.fstat(fd)
    return _File(fd, status.st_dev, status.st_ino)


def _open_memory(members: Mapping[int, _Member], rank: int, timeout_s: float) -> GroupMemory | None:
    """What the first of these ranks has made, as `rank` sees it; None if that cannot be had."""
    ranks = list(members)
    source = members[ranks[0]]
    if source.made is None:
        return None
    with contextlib.ExitStack() as at_failure, contextlib.ExitStack() as at_end:
        try:
            fd = os.open(f"/proc/{source.pid}/fd/{source.made.fd}", os.O_RDWR)
            at_end.callback(os.close, fd)
            status = os.fstat(fd)
            # In another name space of processes it may be anybody's file.
            if (status.st_dev, status.st_ino) != (source.made.device, source.made.inode):
                raise OSError(f"process {source.pid} is another one in /proc")
            pidfds = {}
            for other, member in members.items():
                if other != rank:
                    pidfds[other] = os.pidfd_open(member.pid)
                    at_failure.callback(os.close, pidfds[other])
            memory = GroupMemory(mmap.mmap(fd, SIZE_BYTES), ranks, rank, pidfds, timeout_s)
        except _CANNOT as error:
            _log.warning("hand-overs between ranks %s go by gloo, which is slower: %s", ranks, error)
            return None
        at_failure.pop_all()
        return memory
