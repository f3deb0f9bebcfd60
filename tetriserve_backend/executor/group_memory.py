"""Memory that the ranks of one group share, through which a tensor goes from one of them to the others.

On CPU most of what a message of a few hundred KB costs is waking the core that waits for it. Here who waits keeps
its core awake, and leaves it to any other thread that has something to do there.
"""

import contextlib
import mmap
import os
import platform
import select
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

_CAPACITY = 64 << 20  # bytes; what has not been written takes no memory
_LINE = 8  # words; a member's words have a cache line of their own
_DONE, _GONE = 0, 1  # which word of its line
_MAX_MEMBERS = mmap.PAGESIZE // (8 * _LINE)
# Far more than segments are sent ahead. Whoever waits longer is no longer in a hurry.
_AWAKE_S, _NAP_S = 1.0, 1e-3
_TURNS_PER_LOOK = 64


class GroupMemory:
    """One member's view of it. All members transfer the same tensors in the same order.

    Args:
        fd: of the memory, `size_bytes` long; the caller may close it.
        own: which member this is, counted in the group.
        members: a descriptor of each other member's process (pidfd), which are closed with this.
        timeout_s: how long another member may keep this one waiting.
    """

    def __init__(self, fd: int, own: int, members: Sequence[int], timeout_s: float) -> None:
        self._own, self._members, self._timeout_s = own, members, timeout_s
        memory = mmap.mmap(fd, size_bytes())
        self._words = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        self._data = torch.frombuffer(memory, dtype=torch.uint8, offset=mmap.PAGESIZE)
        self._poll = select.poll()
        for process in members:
            self._poll.register(process, select.POLLIN)
        self._others = [member for member in range(len(members) + 1) if member != own]
        self._count = 0

    @staticmethod
    def fits(tensor: torch.Tensor) -> bool:
        """Whether a tensor can be transferred; the same on all members."""
        return tensor.numel() * tensor.element_size() <= _CAPACITY

    def broadcast(self, tensor: torch.Tensor, root: int) -> None:
        """Send `tensor`, contiguous, of member `root` into `tensor` of every other member.

        Raises:
            ConnectionError: a member has left or is dead.
            TimeoutError: one is late.
        """
        flat = tensor.view(-1).view(torch.uint8)
        shared = self._data[: flat.numel()]
        if root == self._own:
            # What was there before may still be read.
            for member in self._others:
                self._wait_for(member, self._count)
            shared.copy_(flat)
        else:
            self._wait_for(root, self._count + 1)
            flat.copy_(shared)
        self._count += 1
        self._words[self._own * _LINE + _DONE] = self._count

    def close(self) -> None:
        """Leave; who waits for this member, or will, fails. Idempotent."""
        self._words[self._own * _LINE + _GONE] = 1
        for process in self._members:
            os.close(process)
        self._members = ()

    def _wait_for(self, member: int, count: int) -> None:
        """Wait until a member is done with `count` transfers."""
        words, word = self._words, member * _LINE + _DONE
        start_s = time.monotonic()
        while True:
            for _ in range(_TURNS_PER_LOOK):
                if words[word] >= count:
                    return
                os.sched_yield()
            self._check_members()
            waited_s = time.monotonic() - start_s
            if waited_s > self._timeout_s:
                raise TimeoutError(f"timed out: waited {self._timeout_s:g} s for member {member} of the group")
            if waited_s > _AWAKE_S:
                time.sleep(_NAP_S)

    def _check_members(self) -> None:
        gone = [member for member in self._others if self._words[member * _LINE + _GONE]]
        if gone or self._poll.poll(0):
            raise ConnectionError(f"the group broke: {f'member {gone[0]} has left' if gone else 'a member is dead'}")


def size_bytes() -> int:
    """How large the memory of a group is."""
    return mmap.PAGESIZE + _CAPACITY


def share_memory(process_group: Any, own: int, size: int, timeout_s: float) -> GroupMemory | None:
    """Make the memory of a group; all of its members call this at once, on one machine.

    Args:
        process_group: theirs, on CPU.
        own: which member this is.
        size: of how many.
        timeout_s: as for `GroupMemory`.

    Returns:
        None, on all members, where one cannot have it.
    """
    made = _make_memory() if own == 0 and size <= _MAX_MEMBERS else None
    places = [torch.zeros(2, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(places, torch.tensor([os.getpid(), -1 if made is None else made]), group=process_group)
    processes = [int(place[0]) for place in places]
    memory = _open_memory(processes, int(places[0][1]), own, timeout_s)
    is_open = torch.tensor([memory is not None], dtype=torch.int64)
    dist.all_reduce(is_open, op=dist.ReduceOp.MIN, group=process_group)
    if made is not None:
        os.close(made)
    if memory is not None and not is_open:
        memory.close()
        return None
    return memory


def _make_memory() -> int | None:
    """A descriptor of it; None where the system or the processor is not fit for it."""
    # A count that tells of data must not be seen before the data: only x86 promises that for plain stores.
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        fd = os.memfd_create("tetriserve-group")
        os.ftruncate(fd, size_bytes())
    except (AttributeError, OSError):
        return None
    return fd


def _open_memory(processes: Sequence[int], fd: int, own: int, timeout_s: float) -> GroupMemory | None:
    """What the first of `processes` has made as its `fd`; None if that cannot be had."""
    if fd < 0:
        return None
    with contextlib.ExitStack() as at_failure:
        try:
            there = os.open(f"/proc/{processes[0]}/fd/{fd}", os.O_RDWR)
            at_failure.callback(os.close, there)
            members = []
            for member, process in enumerate(processes):
                if member != own:
                    members.append(os.pidfd_open(process))
                    at_failure.callback(os.close, members[-1])
            memory = GroupMemory(there, own, members, timeout_s)
        except (AttributeError, OSError):
            return None
        at_failure.pop_all()
        os.close(there)
        return memory
