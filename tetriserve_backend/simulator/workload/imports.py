"""Traces of other systems, read as ours."""

import ast
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tetriserve_backend.domain.validation import what_is_wrong, where_it_is
from tetriserve_backend.simulator.trace import TraceError, TraceRequest
from tetriserve_backend.simulator.workload.arrivals import arrival_times_s
from tetriserve_backend.simulator.workload.spec import WorkloadSpec


class ImportFormat(str, Enum):
    """Whose trace it is.

    HETU_DIT: lines `Request(request_id=0, timestamp=0.0, height=256, width=256, num_frames=1, prompt='…',
    negative_prompt='…', num_inference_steps=28)`; every one has a timestamp.
    VLLM_OMNI: the same kind of line, or one JSON object a line; `timestamp`, `slo_ms`, `num_inference_steps`
    and `request_id` may be missing.
    """

    HETU_DIT = "hetu-dit"
    VLLM_OMNI = "vllm-omni"


class _Row(BaseModel):
    """The fields that matter here of either system's requests; it has others, for video and images as input."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    line: int = 0
    request_id: str | None = None
    timestamp: Annotated[float, Field(ge=0)] | None = None
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    num_frames: int | None = None
    prompt: str = ""
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    slo_ms: Annotated[float, Field(gt=0)] | None = None
    seed: int | None = None


def import_requests(path: Path, layout: ImportFormat, spec: WorkloadSpec) -> list[TraceRequest]:
    """The requests of another system's trace, in order of arrival.

    What a line lacks comes from `spec`: arrivals, steps (`max_steps`) and SLOs, which scale 1 of `slo_scales`'
    first entry multiplies unless the line has its own. The ids are the file's, or r0, r1, …

    Args:
        path: the file.
        layout: whose it is.
        spec: where missing values come from.

    Raises:
        TraceError: the file cannot be read, a line breaks the format, only some lines have timestamps, or a
            request wants video; names file and line.
    """
    rows = list(_rows(path))
    timed = [row.timestamp is not None for row in rows]
    if any(timed) != all(timed) or (layout is ImportFormat.HETU_DIT and not all(timed)):
        line = rows[timed.index(False)].line
        raise TraceError(f"trace {path}:{line}: timestamp: missing; expected in every line")
    arrivals = [row.timestamp or 0.0 for row in rows] if any(timed) else _made_arrivals(spec, len(rows))
    order = sorted(range(len(rows)), key=lambda index: (arrivals[index], index))
    return [_to_request(rows[index], index, arrivals[index], spec) for index in order]


def _to_request(row: _Row, index: int, arrival_s: float, spec: WorkloadSpec) -> TraceRequest:
    own_s = row.slo_ms / 1000 if row.slo_ms is not None else None
    slo_s = own_s or spec.base_slo_s(row.height, row.width) * spec.slo_scales[0]
    return TraceRequest(
        id=row.request_id or f"r{index}",
        arrival_s=round(arrival_s, 6),
        height=row.height,
        width=row.width,
        num_inference_steps=row.num_inference_steps or spec.max_steps,
        slo_s=round(slo_s, 6),
        prompt=row.prompt,
        seed=row.seed if row.seed is not None else index,
    )


def _made_arrivals(spec: WorkloadSpec, count: int) -> list[float]:
    times: list[float] = []
    for chunk in arrival_times_s(spec, np.random.default_rng(spec.seed), 1024):
        times += chunk.tolist()
        if len(times) >= count:
            break
    return times[:count]


def _rows(path: Path) -> Iterator[_Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _Row.model_validate({**_fields(line.strip()), "line": number})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = where_it_is(first)
            raise TraceError(f"trace {path}:{number}: {field}: {what_is_wrong(first)}") from None
        except (SyntaxError, ValueError) as error:
            raise TraceError(f"trace {path}:{number}: expected Request(name=value, …) or a JSON object") from error
        if (row.num_frames or 1) > 1:
            raise TraceError(f"trace {path}:{number}: num_frames: {row.num_frames}; expected images, not video")
        yield row


def _fields(line: str) -> dict[str, Any]:
    """The keyword arguments of `Request(…)`, literals only, or the members of a JSON object."""
    if not line.startswith("Request("):
        parsed = json.loads(line)
        if not isinstance(parsed, dict):
            raise ValueError("not an object")
        return parsed
    call = ast.parse(line, mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call with names")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg is not None}
