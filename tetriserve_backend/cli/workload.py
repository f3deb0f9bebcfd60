"""The demo's requests: four resolutions, Poisson arrivals, deadlines from the latency table."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, image_tokens
from tetriserve_backend.engine.prediction import fastest_latency_s
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_client import ImageRequest, Size

PROMPTS = (
    "a red fox in fresh snow",
    "a lighthouse at dusk",
    "an astronaut who waters tomatoes",
    "a bicycle made of glass",
    "a harbour in the style of a woodcut",
    "two herons and a thunderstorm",
)

_FEWEST_SHAPES = 3
"""With an oblong between them they make four sizes."""

# What an image costs beside its segments: checking, image encoding and the way back, roughly.
_TRANSPORT_S = 0.15

_MOST_STEPS, _ENOUGH_STEPS, _FEWEST_STEPS = 20, 10, 4


class Transport(str, Enum):
    """How a request reaches the server."""

    GRPC_STREAM = "gRPC"
    HTTP_GENERATE = "HTTP"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request and when to send it, in seconds after the load begins. Its request id is its name in the timeline."""

    arrival_s: float
    transport: Transport
    request: ImageRequest
    size: Size


@dataclass(frozen=True, slots=True)
class LoadShape:
    """What the load looks like.

    Attributes:
        num_requests: how many; one in three goes by HTTP.
        num_steps: denoising steps of each; None takes what fits `span_s`, at most 20.
        span_s: how long the whole load should take; the largest sizes are left out where it would take longer.
        utilization: part of all GPUs' time that the load would fill with every request on one GPU.
        slo_scales: a request's SLO is one of these times its shortest possible latency.
        seed: of arrivals, order and SLOs; the same seed gives the same load on the same table.
    """

    num_requests: int = 12
    num_steps: int | None = None
    span_s: float = 12.0
    utilization: float = 0.7
    slo_scales: tuple[float, ...] = (1.4, 1.8, 2.5, 4.0)
    seed: int = 0


def plan_workload(table: LatencyTable, world_size: int, shape: LoadShape) -> tuple[PlannedRequest, ...]:
    """Requests in order of arrival; every resolution appears about equally often."""
    draw = random.Random(shape.seed)
    sizes, num_steps = fit_into_span(table, world_size, shape)
    order = [sizes[index % len(sizes)] for index in range(shape.num_requests)]
    draw.shuffle(order)
    mean_gpu_seconds = sum(cheapest_gpu_seconds(table, size.height, size.width, num_steps) for size in order) / len(
        order
    )
    arrivals_per_s = shape.utilization * world_size / mean_gpu_seconds
    digits = len(str(shape.num_requests - 1))
    planned, now_s = [], 0.0
    for index, size in enumerate(order):
        slo_s = (
            draw.choice(shape.slo_scales) * fastest_latency_s(table, size.height, size.width, num_steps) + _TRANSPORT_S
        )
        request = ImageRequest(
            PROMPTS[index % len(PROMPTS)],
            size=size,
            steps=num_steps,
            slo_s=round(slo_s, 2),
            seed=shape.seed + index,
            output_format="png",
            request_id=f"r{index:0{digits}d}",
        )
        transport = Transport.HTTP_GENERATE if index % 3 == 2 else Transport.GRPC_STREAM
        planned.append(PlannedRequest(round(now_s, 3), transport, request, size))
        now_s += draw.expovariate(arrivals_per_s)
    return tuple(planned)


def fit_into_span(table: LatencyTable, world_size: int, shape: LoadShape) -> tuple[tuple[Size, ...], int]:
    """The largest sizes, and the most steps of each, with which the load takes about the time that it should.

    On slow ranks the steps go down before variety does: four sizes stay as long as the table has three.
    """
    shapes = table.resolutions
    for count in range(len(shapes), min(len(shapes), _FEWEST_SHAPES) - 1, -1):
        sizes = choose_sizes(shapes[:count])
        num_steps = _steps_within_span(table, world_size, shape, sizes)
        if num_steps >= _ENOUGH_STEPS or shape.num_steps is not None:
            break
    return sizes, shape.num_steps or max(_FEWEST_STEPS, num_steps)


def _steps_within_span(table: LatencyTable, world_size: int, shape: LoadShape, sizes: Sequence[Size]) -> int:
    budget = shape.span_s * world_size * shape.utilization / shape.num_requests
    fixed = sum(cheapest_gpu_seconds(table, size.height, size.width, 0) for size in sizes) / len(sizes)
    step = sum(cheapest_gpu_seconds(table, size.height, size.width, 1) for size in sizes) / len(sizes) - fixed
    return min(_MOST_STEPS, int((budget - fixed) / step))


def choose_sizes(shapes: Sequence[tuple[int, int]]) -> tuple[Size, ...]:
    """Up to four sizes: the smallest, a middle and the largest of `shapes`, and a non-square one between.

    `shapes` are (height, width), fewest tokens first; at least one.
    """
    chosen = [shapes[0], shapes[len(shapes) // 2], shapes[-1]]
    oblong = next((shape for shape in shapes if shape[0] != shape[1]), None) or _oblong_between(shapes[0], shapes[-1])
    if oblong is not None:
        chosen.append(oblong)
    return tuple(Size(width=width, height=height) for height, width in dict.fromkeys(chosen))


def _oblong_between(smallest: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int] | None:
    """A landscape of twice its height; None if none fits.

    An even number of tokens a side, so that small degrees divide them.
    """
    least, most = image_tokens(*smallest), image_tokens(*largest)
    side = 2 * (math.isqrt(math.isqrt(least * most) // 2) // 2)
    while 2 * side * side < least:
        side += 2
    if 2 * side * side > most:
        return None
    return side * PIXELS_PER_TOKEN_SIDE, 2 * side * PIXELS_PER_TOKEN_SIDE


def write_trace(planned: Sequence[PlannedRequest], path: Path) -> None:
    """Write the load as a `*.trace.jsonl`, which simulator and checks replay."""
    lines = [json.dumps(_trace_line(item)) for item in planned]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _trace_line(item: PlannedRequest) -> dict[str, str | int | float | None]:
    return {
        "id": item.request.request_id,
        "arrival_s": item.arrival_s,
        "height": item.size.height,
        "width": item.size.width,
        "num_inference_steps": item.request.steps,
        "slo_s": item.request.slo_s,
        "prompt": item.request.prompt,
        "seed": item.request.seed,
    }


def cheapest_gpu_seconds(table: LatencyTable, height: int, width: int, num_steps: float) -> float:
    """What one image costs on the fewest ranks that its steps can run on, encode and decode included."""
    degree = table.degrees(height, width)[0]
    step_gpu_s = degree * table.step_s(height, width, degree)
    return table.encode_s() + num_steps * step_gpu_s + table.decode_s(height, width)
