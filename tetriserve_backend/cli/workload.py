"""The demo's requests: four resolutions, Poisson arrivals, deadlines from the latency table."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tetriserve_client import ImageRequest, Size

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, image_tokens
from tetriserve_backend.latency_table import LatencyTable

PROMPTS = (
    "a red fox in fresh snow",
    "a lighthouse at dusk",
    "an astronaut who waters tomatoes",
    "a bicycle made of glass",
    "a harbour in the style of a woodcut",
    "two herons and a thunderstorm",
)

# What an image costs beside its segments: checking, image encoding and the way back, roughly.
_TRANSPORT_S = 0.15


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
        num_steps: denoising steps of each.
        utilization: part of all GPUs' time that the load would fill with every request on one GPU.
        slo_scales: a request's SLO is one of these times its shortest possible latency.
        seed: of arrivals, order and SLOs; the same seed gives the same load on the same table.
    """

    num_requests: int = 12
    num_steps: int = 20
    utilization: float = 0.7
    slo_scales: tuple[float, ...] = (2.5, 3.0, 4.0, 6.0)
    seed: int = 0


def plan_workload(table: LatencyTable, world_size: int, shape: LoadShape) -> tuple[PlannedRequest, ...]:
    """Requests in order of arrival; every resolution appears about equally often."""
    draw = random.Random(shape.seed)
    sizes = choose_sizes(table)
    order = [sizes[index % len(sizes)] for index in range(shape.num_requests)]
    draw.shuffle(order)
    mean_gpu_seconds = sum(_gpu_seconds(table, size, shape.num_steps) for size in order) / len(order)
    arrivals_per_s = shape.utilization * world_size / mean_gpu_seconds
    digits = len(str(shape.num_requests - 1))
    planned, now_s = [], 0.0
    for index, size in enumerate(order):
        slo_s = draw.choice(shape.slo_scales) * _shortest_latency_s(table, size, shape.num_steps) + _TRANSPORT_S
        request = ImageRequest(
            PROMPTS[index % len(PROMPTS)],
            size=size,
            steps=shape.num_steps,
            slo_s=round(slo_s, 2),
            seed=shape.seed + index,
            output_format="png",
            request_id=f"r{index:0{digits}d}",
        )
        transport = Transport.HTTP_GENERATE if index % 3 == 2 else Transport.GRPC_STREAM
        planned.append(PlannedRequest(round(now_s, 3), transport, request, size))
        now_s += draw.expovariate(arrivals_per_s)
    return tuple(planned)


def choose_sizes(table: LatencyTable) -> tuple[Size, ...]:
    """Up to four sizes: the smallest, a middle and the largest profiled one, and a non-square one between."""
    shapes = table.resolutions
    chosen = [shapes[0], shapes[len(shapes) // 2], shapes[-1]]
    oblong = next((shape for shape in shapes if shape[0] != shape[1]), None) or _oblong_within(table)
    if oblong is not None:
        chosen.append(oblong)
    return tuple(Size(width=width, height=height) for height, width in dict.fromkeys(chosen))


def _oblong_within(table: LatencyTable) -> tuple[int, int] | None:
    """A landscape of twice its height, between the table's smallest and largest shape; None if none fits.

    An even number of tokens a side, so that small degrees divide them.
    """
    least, most = image_tokens(*table.resolutions[0]), image_tokens(*table.resolutions[-1])
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


def _gpu_seconds(table: LatencyTable, size: Size, num_steps: int) -> float:
    degree = table.degrees(size.height, size.width)[0]
    step = degree * table.step_s(size.height, size.width, degree)
    return table.encode_s() + num_steps * step + table.decode_s(size.height, size.width)


def _shortest_latency_s(table: LatencyTable, size: Size, num_steps: int) -> float:
    step_s = table.fastest_step_s(size.height, size.width)
    return table.encode_s() + num_steps * step_s + table.decode_s(size.height, size.width)
