"""What a rank is told at birth, and of each model."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from tetriserve_backend.executor.config import ModelSettings


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that a rank is told of a model that it is to hold.

    Attributes:
        name: as `Segment.model`.
        directory: local, in diffusers format.
        dtype: decided, not `auto`.
        pace: the latency table that its work keeps to, as JSON values; read once, so that it is the same on all ranks
            and there for those that are born later.
    """

    name: str
    directory: str
    settings: ModelSettings
    dtype: str
    pace: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RankSpec:
    """All that a rank is told at birth.

    Attributes:
        name: names this process at the parent's socket; a later process of the same rank has another.
        endpoint: the parent's message socket.
        store_port: the parent's rendezvous store, on the loopback interface.
        device: decided, not `auto`.
        models: what it is to hold from the start.
        is_pinned: keeps to cores of its own.
        shares_memory: as for `RankGroups`; on CPU.
    """

    rank: int
    world_size: int
    name: str
    endpoint: str
    store_port: int
    device: str
    threads: int
    group_timeout_s: float
    start_timeout_s: float
    is_pinned: bool = False
    shares_memory: bool = False
    models: tuple[ModelSpec, ...] = ()


SPEC_ADAPTER: TypeAdapter[RankSpec] = TypeAdapter(RankSpec)
