"""Every message between the parent and its ranks, and how it becomes frames: JSON and raw tensors, no pickle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import zmq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.worker_spec import ModelSpec

Buffer: TypeAlias = "bytes | memoryview"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a raw frame holds. `step` counts the denoising steps that a latent has behind it, else 0."""

    request_id: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    step: int = 0


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A tensor in host memory, in C order."""

    header: TensorHeader
    data: Buffer


@dataclass(frozen=True, slots=True)
class RankInfo:
    """What a rank tells of itself."""

    device_name: str
    software: dict[str, str]


# Parent to rank.


@dataclass(frozen=True, slots=True)
class FormWorld:
    """Leave all groups and make them anew with every rank, in this generation."""

    generation: int
    kind: Literal["form_world"] = "form_world"


@dataclass(frozen=True, slots=True)
class HealGroup:
    """Make one group anew with its members; `number` counts such events."""

    ranks: tuple[int, ...]
    number: int
    kind: Literal["heal_group"] = "heal_group"


@dataclass(frozen=True, slots=True)
class Perform:
    """Run a segment. The tensors of its HOST sources come along, in the frames, to their root only."""

    command: RunSegment
    tensors: tuple[TensorHeader, ...]
    kind: Literal["perform"] = "perform"


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a request's tensors."""

    request_id: str
    kind: Literal["forget"] = "forget"


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Hold one more model."""

    model: ModelSpec
    kind: Literal["load_model"] = "load_model"


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Drop a model, if it is there, and free its memory."""

    name: str
    kind: Literal["unload_model"] = "unload_model"


@dataclass(frozen=True, slots=True)
class Stop:
    """End."""

    kind: Literal["stop"] = "stop"


ToRank: TypeAlias = FormWorld | HealGroup | Perform | Forget | LoadModel | UnloadModel | Stop


# Rank to parent.


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models that the rank was born with are there, by name; waiting for the first `FormWorld`."""

    info: RankInfo
    models: dict[str, ModelFacts]
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The rank cannot serve and ends."""

    reason: str
    kind: Literal["start_failed"] = "start_failed"


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The rank holds one more model."""

    name: str
    facts: ModelFacts
    kind: Literal["model_loaded"] = "model_loaded"


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """The rank cannot hold that model; it goes on with those that it has."""

    name: str
    reason: str
    kind: Literal["model_failed"] = "model_failed"


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    """The rank holds that model no more."""

    name: str
    kind: Literal["model_unloaded"] = "model_unloaded"


@dataclass(frozen=True, slots=True)
class WorldReady:
    """All groups of a generation are there."""

    generation: int
    kind: Literal["world_ready"] = "world_ready"


@dataclass(frozen=True, slots=True)
class GroupHealed:
    """A group is there again."""

    ranks: tuple[int, ...]
    kind: Literal["group_healed"] = "group_healed"


@dataclass(frozen=True, slots=True)
class StepDone:
    """Step `step_index` of a request that asked for progress is done; the frames hold its preview, if any."""

    request_id: str
    step_index: int
    tensors: tuple[TensorHeader, ...] = ()
    kind: Literal["step_done"] = "step_done"


@dataclass(frozen=True, slots=True)
class PartDone:
    """This rank's share of a segment is done; the lead rank's frames hold the results."""

    segment_id: int
    start_s: float
    end_s: float
    tensors: tuple[TensorHeader, ...]
    peak_memory_bytes: int | None = None
    kind: Literal["part_done"] = "part_done"


Blame: TypeAlias = Literal["work", "group", "state"]
"""`work`: the segment itself raised. `group`: another rank left it. `state`: tensors were not where they were meant."""


@dataclass(frozen=True, slots=True)
class PartFailed:
    """This rank's share of a segment failed. `group_broken`: this rank has left the segment's group."""

    segment_id: int
    reason: str
    blame: Blame
    group_broken: bool
    kind: Literal["part_failed"] = "part_failed"


FromRank: TypeAlias = (
    Loaded
    | StartFailed
    | ModelLoaded
    | ModelFailed
    | ModelUnloaded
    | WorldReady
    | GroupHealed
    | StepDone
    | PartDone
    | PartFailed
)
Message: TypeAlias = ToRank | FromRank

# A request without a deadline has an infinite one, which plain JSON would turn into null.
_ADAPTER: TypeAdapter[Message] = TypeAdapter(
    Annotated[Message, Field(discriminator="kind")], config=ConfigDict(ser_json_inf_nan="constants")
)


class WireError(Exception):
    """A message that is not one of ours; a bug, or somebody else at the socket.

    Attributes:
        segment_id: of the segment that the message tells to run, if it is that far in order. Each of its
            ranks gets the same message, so each refuses it.
    """

    def __init__(self, problem: str, segment_id: int | None = None) -> None:
        super().__init__(problem)
        self.segment_id = segment_id


def encode(message: Message, tensors: Sequence[HostTensor] = ()) -> list[Buffer]:
    """Frames of a message; `tensors` in the order in which the message lists their headers.

    Raises:
        ValueError: a value of the message cannot be written, such as half of a surrogate pair in a text.
    """
    return [_ADAPTER.dump_json(message), *(tensor.data for tensor in tensors)]


def decode(frames: Sequence[zmq.Frame]) -> tuple[Message, tuple[HostTensor, ...]]:
    """A message and its tensors, from frames.

    Raises:
        WireError: the header is not a message of ours, or the frames do not match it.
    """
    try:
        message = _ADAPTER.validate_json(frames[0].bytes)
    except ValidationError as error:
        raise WireError(f"not a message: {error}", _segment_id(frames[0].bytes)) from error
    headers = message.tensors if isinstance(message, Perform | PartDone | StepDone) else ()
    if len(headers) != len(frames) - 1:
        raise WireError(f"{message.kind}: {len(headers)} tensors announced, {len(frames) - 1} received")
    return message, tuple(HostTensor(h, f.buffer) for h, f in zip(headers, frames[1:], strict=True))


def _segment_id(header: bytes) -> int | None:
    try:
        message = json.loads(header)
        found = message["command"]["segment"]["segment_id"] if message["kind"] == "perform" else None
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
