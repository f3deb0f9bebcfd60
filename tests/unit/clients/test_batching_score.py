"""What `make bench-batching` makes of the answers of a server."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tetriserve_client import GenerateResult, ImageResult, ServerFailureError

SCRIPT = Path(__file__).parents[3] / "clients" / "batching_score.py"


@pytest.fixture(scope="module")
def batching_score() -> ModuleType:
    spec = importlib.util.spec_from_file_location("batching_score", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def segment(kind: str, ranks: list[int], steps: int, duration_s: float, batch_size: int = 1) -> dict[str, Any]:
    told = {"kind": kind, "ranks": ranks, "sp_degree": len(ranks), "cfg_degree": 1, "steps": steps}
    return {**told, "start_s": 0.0, "duration_s": duration_s, "batch_size": batch_size}


def result(level: int, *segments: dict[str, Any], on_time: bool = True, total_s: float = 1.0) -> GenerateResult:
    pixels = np.full((2, 2, 3), level, np.uint8)
    told = {"image_index": 0, "num_images": 1, "output_format": "raw", "image_shape": [2, 2, 3]}
    metadata = {**told, "deadline_met": on_time, "total_s": total_s, "segments": list(segments)}
    return GenerateResult.of([ImageResult(pixels.tobytes(), metadata, total_s)], total_s)


def test_shared_passes_count_once_and_ranks_as_many_as_there_were(batching_score: ModuleType) -> None:
    first = result(
        7, segment("encode", [0], 0, 0.5), segment("denoise", [0], 4, 2.0, 2), segment("denoise", [0, 1], 2, 1.0)
    )
    second = result(7, segment("denoise", [0], 4, 2.0, 2), on_time=False, total_s=3.0)
    found = batching_score.score({"a": first, "b": second}, {"a": result(7), "b": result(7)})
    assert (found.busy_gpu_s, found.steps, found.shared_steps, found.passes) == (0.5 + 2.0 + 2.0, 10, 8, 6.0)
    assert (found.on_time, found.attainment, found.latency_s, found.errors) == (1, 0.5, 2.0, ())
    assert found.on_time_per_gpu_second == pytest.approx(1 / 4.5)
    both = found + found
    assert (both.requests, both.latency_s, both.passes, both.attainment) == (4, 2.0, 12.0, 0.5)


def test_another_image_and_none_are_errors(batching_score: ModuleType) -> None:
    answers = {"same": result(8), "other": result(9), "none": ServerFailureError("gone")}
    found = batching_score.score(answers, {name: result(7) for name in answers})
    assert found.difference == 2
    assert found.errors == ("none: gone", "other: differs by 2 of 255")


def test_verdict_says_which_side_met_more_deadlines(batching_score: ModuleType) -> None:
    met = batching_score.score({"a": result(7, segment("denoise", [0], 1, 1.0))}, {"a": result(7)})
    missed = batching_score.score({"a": result(7, segment("denoise", [0], 1, 1.0), on_time=False)}, {"a": result(7)})
    assert "at least as often as without: 100.0% against 0.0% (+100.0 points)" in batching_score.verdict_of(met, missed)
    assert "LESS OFTEN than without: 0.0% against 100.0% (-100.0 points)" in batching_score.verdict_of(missed, met)
