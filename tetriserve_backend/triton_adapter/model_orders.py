"""What a served model's stand-in in Triton and the engine say to each other: one JSON object a line."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tetriserve_backend.domain import ErrorCode
from tetriserve_backend.triton_adapter.settings import ServedModelSettings


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadOrder(_Message):
    """Serve this model, as long as the connection lasts."""

    settings: ServedModelSettings
    kind: Literal["load"] = "load"


class UnloadOrder(_Message):
    """Serve it no more, once its running requests are done."""

    kind: Literal["unload"] = "unload"


class Done(_Message):
    """The order has been carried out."""

    kind: Literal["done"] = "done"


class Refused(_Message):
    """The order could not be carried out; why, with the code of our error."""

    code: ErrorCode
    reason: str
    kind: Literal["refused"] = "refused"


Message: TypeAlias = LoadOrder | UnloadOrder | Done | Refused

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """One line."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises:
        ValueError: it is none of ours.
    """
    return _ADAPTER.validate_json(line)
