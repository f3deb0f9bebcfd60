"""Traces: one request a line, in order of arrival, read and written as a stream."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tetriserve_backend.domain import ConfigurationError, Request
from tetriserve_backend.domain.validation import what_is_wrong, where_it_is


class TraceError(ConfigurationError):
    """A trace is missing or broken; the message names file, line, field and expectation."""


class TraceRequest(BaseModel):
    """One line of a `*.trace.jsonl`. Keys that it does not name are left to other readers.

    Attributes:
        id: unique in the trace; a number becomes its digits.
        arrival_s: seconds since the trace began.
        height, width: pixels.
        slo_s: seconds from arrival to deadline.
        model: whose request it is; "" where one model is served.
    """

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    id: Annotated[str, Field(min_length=1)]
    arrival_s: Annotated[float, Field(ge=0)]
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    num_inference_steps: Annotated[int, Field(ge=1)]
    slo_s: Annotated[float, Field(gt=0)]
    prompt: str = ""
    seed: int = 0
    priority: int = 0
    model: str = ""

    def to_request(self) -> Request:
        """The request as the engine takes it, on a clock that starts with the trace."""
        return Request(
            request_id=self.id,
            height=self.height,
            width=self.width,
            num_steps=self.num_inference_steps,
            arrival_s=self.arrival_s,
            deadline_s=self.arrival_s + self.slo_s,
            prompt=self.prompt,
            seed=self.seed,
            priority=self.priority,
            model=self.model,
        )

    def to_line(self) -> str:
        """One line of JSON, without what has its default."""
        return json.dumps(self.model_dump(exclude_defaults=True))


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a file, one at a time: a trace of any length takes the memory of one line.

    Raises:
        TraceError: the file cannot be read, a line breaks the format, or arrivals are out of order. Raised
            when the line is reached.
    """
    latest_s = 0.0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                request = _parse(line, f"{path}:{number}")
                if request.arrival_s < latest_s:
                    raise TraceError(
                        f"trace {path}:{number}: arrival_s: {request.arrival_s} lies before {latest_s} of the line "
                        "above; expected requests in order of arrival"
                    )
                latest_s = request.arrival_s
                yield request
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace {path}: cannot be read: {error}") from error


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> int:
    """Write requests as they come; returns how many.

    Raises:
        OSError: the file cannot be written.
    """
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for request in requests:
            out.write(request.to_line() + "\n")
            count += 1
    return count


def _parse(line: str, where: str) -> TraceRequest:
    try:
        return TraceRequest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = where_it_is(first) or "line"
        got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
        raise TraceError(f"trace {where}: {field}: {what_is_wrong(first)}{got}") from None
