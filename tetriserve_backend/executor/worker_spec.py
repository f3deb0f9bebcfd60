"""What a rank is told at birth."""

from dataclasses import dataclass

from pydantic import TypeAdapter

from tetriserve_backend.executor.config import ModelSettings


@dataclass(frozen=True, slots=True)
class RankSpec:
    """All that a rank is told at birth.

    Attributes:
        name: names this process at the parent's socket; a later process of the same rank has another.
        endpoint: the parent's message socket.
        store_port: the parent's rendezvous store, on the loopback interface.
        model_directory: a local directory in diffusers format.
        device, dtype: decided, not `auto`.
        is_pinned: keeps to cores of its own.
    """

    rank: int
    world_size: int
    name: str
    endpoint: str
    store_port: int
    model_directory: str
    model: ModelSettings
    device: str
    dtype: str
    threads: int
    group_timeout_s: float
    start_timeout_s: float
    is_pinned: bool = False


SPEC_ADAPTER: TypeAdapter[RankSpec] = TypeAdapter(RankSpec)
