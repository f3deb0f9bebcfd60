"""A whole latency table for a model on several GPUs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tetriserve_backend.domain import ConfigurationError, image_tokens
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.analytic.pipeline import Pipeline

_DISPATCH_S = 0.002


@dataclass(frozen=True, slots=True)
class TableShape:
    """Which entries a table has.

    Attributes:
        gpus: the world.
        resolutions: (height, width) in pixels, multiples of 16.
        batches: images that share a step.
    """

    gpus: int
    resolutions: Sequence[tuple[int, int]]
    batches: Sequence[int]


def compute_table(pipeline: Pipeline, shape: TableShape) -> LatencyTable:
    """Compute every entry.

    Raises:
        ConfigurationError: the model's weights do not fit into the GPU.
        LatencyTableError: the shape makes no valid table.
    """
    _check_memory(pipeline)
    model = pipeline.model
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": model.model,
            "device": pipeline.gpu.device,
            "world_size": shape.gpus,
            "dtype": "bfloat16",
            "source": "analytic",
            "note": f"Computed from the layers of {model.name} and the datasheet of {pipeline.gpu.name}; nothing here "
            "was measured. profiling/README.md tells what the model is calibrated with and how far to trust it.",
            "software": {"kernels": pipeline.software},
            "text_tokens": model.text_tokens,
            "guided": model.guided,
            "step": list(_steps(pipeline, shape)),
            "encode": [{"batch": 1, "seconds": _rounded(pipeline.encode_s())}],
            "decode": [
                {"height": height, "width": width, "seconds": _rounded(pipeline.decode_s(height, width))}
                for height, width in shape.resolutions
            ],
            "dispatch_seconds": _DISPATCH_S,
        },
        origin="computed",
    )


def degrees(pipeline: Pipeline, ranks: int, height: int, width: int) -> list[int]:
    """Powers of two up to `ranks` that divide the image tokens and all else that the model shares."""
    counts = [*pipeline.model.shared_counts.values(), image_tokens(height, width)]
    # Even a world that is no power of two has only groups that are.
    powers = [2**exponent for exponent in range(ranks.bit_length())]
    return [degree for degree in powers if all(count % degree == 0 for count in counts)]


def _steps(pipeline: Pipeline, shape: TableShape) -> Iterator[dict[str, Any]]:
    # GPUs that no link joins serve different images.
    joined = min(shape.gpus, pipeline.gpu.max_gpus)
    for height, width in shape.resolutions:
        for batch in shape.batches:
            for cfg in (1, 2) if pipeline.model.guided else (1,):
                for sp in degrees(pipeline, joined // cfg, height, width):
                    seconds = _rounded(pipeline.step_s(height, width, batch, sp, cfg))
                    entry = {"height": height, "width": width, "batch": batch, "sp": sp}
                    yield entry | ({"cfg": cfg} if cfg > 1 else {}) | {"seconds": seconds}


def _check_memory(pipeline: Pipeline) -> None:
    needed_gb, there_gb = pipeline.weight_bytes() / 1e9, pipeline.gpu.memory_gb
    if needed_gb > there_gb:
        raise ConfigurationError(
            f"model {pipeline.model.name}: its weights take {needed_gb:.1f} GB, and one {pipeline.gpu.name} has "
            f"{there_gb:g} GB; every rank holds all of them, so a larger GPU or a smaller model is needed"
        )


def _rounded(seconds: float) -> float:
    """Four significant digits are more than the model is worth."""
    return float(f"{seconds:.4g}")
