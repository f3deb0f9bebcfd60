"""Every process group that a placement may use, and the switch of xfuser from one to another.

All groups are made by all ranks in one order, each with an explicit timeout (torch gives sub-groups
its own default of 30 minutes otherwise). xfuser sees a real sequence-parallel coordinator around
each; going from one group to another is three assignments, and from one model to another one more.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import yunchang.globals as yunchang_globals
from torch._C._distributed_c10d import PrefixStore, Store
from xfuser import xFuserArgs
from xfuser.core.distributed import get_runtime_state, initialize_runtime_state, parallel_state, runtime_state
from xfuser.core.distributed.group_coordinator import SequenceParallelGroupCoordinator

from tetriserve_backend.executor.group_memory import GroupMemory, share_memory
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.placements import shared_groups

_SINGLE_RANK_STATES = ("_MODEL_REPLICA", "_DP", "_CFG", "_PP", "_TP", "_FS", "_SP")
_ALL_STATES = (*_SINGLE_RANK_STATES, "_WORLD", "_DIT", "_VAE")


class SequenceParallelModel(Protocol):
    """What xfuser's runtime state wants to know of a model."""

    @property
    def transformer(self) -> Any:
        """The diffusers transformer."""

    @property
    def facts(self) -> ModelFacts:
        """What the server must know of it."""

    @property
    def attention_backend(self) -> str | None:
        """The name of one of xfuser's attention backends; None lets xfuser choose."""


class RankGroup(SequenceParallelGroupCoordinator):  # type: ignore[misc]
    """xfuser's coordinator around a ready-made process group; None for a single rank."""

    def __init__(self, ranks: tuple[int, ...], process_group: Any, rank: int, device: torch.device) -> None:
        # The parent's constructor would make two more groups per coordinator, so it is not called.
        self.rank = self.local_rank = rank
        self.ranks = list(ranks)
        self.world_size = self.ulysses_world_size = len(ranks)
        self.rank_in_group = self.ulysses_rank = ranks.index(rank)
        self.ring_world_size, self.ring_rank = 1, 0
        self.device_group = self.ulysses_group = process_group
        self.cpu_group = self.ring_group = None
        self.device = device
        self.memory: GroupMemory | None = None

    def close_memory(self) -> None:
        """Have members who wait for us in it fail at once."""
        if self.memory is not None:
            self.memory.close()


class HalvedGroup:
    """A group of which each half computes one pass of classifier-free guidance: the first one the unconditional.

    Args:
        whole, half: the group and this rank's half of it.
    """

    def __init__(self, whole: RankGroup, half: RankGroup) -> None:
        self._whole, self._half = whole, half

    @property
    def is_unconditional(self) -> bool:
        """Whether this rank is in the first half."""
        return self._whole.rank_in_group < self._half.world_size

    def exchange(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The unconditional and the conditional half's `velocity`, on every rank, bit for bit.

        Every rank of a half holds the same, so each gives one slice of it: all of one collective arrives once.
        """
        own = velocity.reshape(self._half.world_size, -1)[self._half.rank_in_group]
        first, second = self._whole.all_gather(own).view(2, *velocity.shape)
        return first, second


class RankGroups:
    """The groups of one rank in one generation of the world.

    Args:
        rank, world_size: who we are.
        device: the device of this rank.
        timeout_s: how long a collective may take.
        shares_memory: tensors go from one rank to others through memory, for which they wait with their cores awake.
    """

    def __init__(
        self, rank: int, world_size: int, device: torch.device, timeout_s: float, *, shares_memory: bool
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._timeout = timedelta(seconds=timeout_s)
        self._shares_memory = shares_memory
        self._groups: dict[tuple[int, ...], RankGroup] = {}
        # What xfuser knows of a model is one global object. A model that goes takes its own along.
        self._states: WeakKeyDictionary[SequenceParallelModel, Any] = WeakKeyDictionary()

    @property
    def backend(self) -> str:
        """`nccl` on CUDA, `gloo` elsewhere."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def form(self, generation: int, store: Store) -> None:
        """Leave the old world, if any, and meet all ranks in a new one under the same store.

        Raises:
            RuntimeError: some rank did not come within the timeout.
        """
        self.leave()
        prefixed = PrefixStore(f"generation{generation}", store)
        dist.init_process_group(
            self.backend, store=prefixed, rank=self.rank, world_size=self.world_size, timeout=self._timeout
        )
        alone = RankGroup((self.rank,), None, self.rank, self.device)
        self._groups = {(self.rank,): alone}
        for name in _SINGLE_RANK_STATES:
            setattr(parallel_state, name, alone)
        world = tuple(range(self.world_size))
        parallel_state._WORLD = RankGroup(world, dist.group.WORLD, self.rank, self.device)
        for ranks in shared_groups(self.world_size):
            # On a GPU the default group doubles as the largest one, since a communicator costs memory there.
            doubles = ranks == world and self.backend == "nccl"
            made = dist.group.WORLD if doubles else self._new_group(ranks)
            if self.rank in ranks:
                self._groups[ranks] = self._group_of(ranks, made)
        if self.device.type == "cuda":
            self._warm()

    def heal(self, ranks: tuple[int, ...], number: int) -> None:
        """Make one broken group anew; only its members meet.

        `number` is the same for all members and was not used before. It names the group: torch would name it
        by its ranks and by how many groups this rank has, which may repeat and which members may see differently.
        """
        self.break_up(ranks)
        internals: Any = dist.distributed_c10d
        name_of = internals._process_group_name
        internals._process_group_name = lambda *_, **__: f"healed{number}"
        try:
            made = dist.new_group(
                list(ranks), timeout=self._timeout, backend=self.backend, use_local_synchronization=True
            )
        finally:
            internals._process_group_name = name_of
        self._groups[ranks] = self._group_of(ranks, made)

    def break_up(self, ranks: tuple[int, ...]) -> None:
        """Close our end of a group, so that members who wait for us in a collective fail at once.

        Not for CUDA, where waiting kernels cannot be called back: there the members are restarted.
        """
        group = self._groups.pop(ranks, None)
        if group is None or group.device_group is None:
            return
        self._select(self._groups[(self.rank,)])
        group.close_memory()
        dist.destroy_process_group(group.device_group)

    def has(self, ranks: tuple[int, ...]) -> bool:
        """Whether this rank is in a healthy group of exactly these ranks."""
        return ranks in self._groups

    def use(self, ranks: tuple[int, ...], model: SequenceParallelModel) -> None:
        """Make xfuser run its next forward passes on `ranks`, with what it knows of `model`.

        Raises:
            KeyError: there is no such group, or it is broken.
        """
        self._select(self._groups[ranks])
        if model not in self._states:
            self._states[model] = self._make_state(model)
        runtime_state._RUNTIME = self._states[model]

    def halved(self, ranks: tuple[int, ...], half: tuple[int, ...]) -> HalvedGroup:
        """The group of `ranks`, of which this rank is in `half`.

        Raises:
            KeyError: one of them does not exist, or is broken.
        """
        return HalvedGroup(self._groups[ranks], self._groups[half])

    def broadcast(self, tensor: torch.Tensor, ranks: tuple[int, ...], root: int) -> None:
        """Send `tensor` of rank `root` into `tensor` of every other rank of `ranks`."""
        group = self._groups[ranks]
        if group.memory is not None and group.memory.fits(tensor):
            group.memory.broadcast(tensor, root)
        elif self.device.type == "cpu" and len(ranks) == 2:
            # To one rank gloo sends without passing through its threads, which takes a quarter less.
            other = max(set(ranks) - {root})
            action, peer = (dist.send, other) if self.rank == root else (dist.recv, root)
            action(tensor, peer, group.device_group)
        else:
            dist.broadcast(tensor, src=root, group=group.device_group)

    def latest(self, moment_s: float, ranks: tuple[int, ...]) -> float:
        """The latest of the moments that the members of a group tell, once all have; on CPU."""
        moments = torch.tensor([moment_s], dtype=torch.float64)
        if len(ranks) > 1:
            dist.all_reduce(moments, op=dist.ReduceOp.MAX, group=self._groups[ranks].device_group)
        return float(moments)

    def leave(self) -> None:
        """Give up all groups; needs no other rank."""
        for group in self._groups.values():
            group.close_memory()
        self._groups = {}
        if dist.is_initialized():
            # NCCL's orderly destruction waits for peers, of whom one may be dead.
            abort: Callable[[], None] | None = getattr(dist.distributed_c10d, "_abort_process_group", None)
            if self.device.type == "cuda" and abort is not None:
                abort()
            else:
                dist.destroy_process_group()
        for name in _ALL_STATES:
            setattr(parallel_state, name, None)
        yunchang_globals.PROCESS_GROUP.ULYSSES_PG = yunchang_globals.PROCESS_GROUP.RING_PG = None

    def _new_group(self, ranks: tuple[int, ...]) -> Any:
        return dist.new_group(list(ranks), timeout=self._timeout, backend=self.backend)

    def _group_of(self, ranks: tuple[int, ...], process_group: Any) -> RankGroup:
        """The coordinator of a group that its members have just made."""
        group = RankGroup(ranks, process_group, self.rank, self.device)
        if self._shares_memory:
            group.memory = share_memory(process_group, ranks, self.rank, self._timeout.total_seconds())
        return group

    def _make_state(self, model: SequenceParallelModel) -> Any:
        """The runtime state of xfuser, which it builds from a pipeline-like object."""
        # The degrees must multiply to the world size; ours change later, so claim data parallelism now.
        arguments = xFuserArgs(
            model="served", data_parallel_degree=self.world_size, attention_backend=model.attention_backend
        )
        engine_config, _ = arguments.create_config()
        pipeline = type("Pipeline", (), {"transformer": model.transformer, "vae_scale_factor": 8})()
        initialize_runtime_state(pipeline, engine_config)
        state = get_runtime_state()
        state.max_condition_sequence_length = model.facts.text_tokens
        state.split_text_embed_in_sp, state.text_embed_sp_pad = True, 0
        return state

    def _warm(self) -> None:
        """Open the communicators now, in one order, with the operations that serving uses.

        NCCL opens them at the first operation, which takes seconds and memory.
        """
        for ranks in shared_groups(self.world_size):
            if self.rank not in ranks:
                continue
            group = self._groups[ranks].device_group
            source = torch.zeros(len(ranks), device=self.device)
            target = torch.zeros_like(source)
            dist.all_to_all_single(target, source, group=group)
            dist.all_gather_into_tensor(target, source[:1], group=group)
            dist.broadcast(source, src=ranks[0], group=group)
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _select(group: RankGroup) -> None:
        parallel_state._SP = group
        yunchang_globals.PROCESS_GROUP.ULYSSES_PG = group.ulysses_group
        yunchang_globals.PROCESS_GROUP.RING_PG = None
