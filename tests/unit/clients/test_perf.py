"""What perf_analyzer is given, and what is read from its report."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tetriserve_client import Size

SCRIPT = Path(__file__).parents[3] / "clients" / "perf.py"


@pytest.fixture(scope="module")
def perf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("perf_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_report_is_read_in_milliseconds(perf: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "r.csv"
    report.write_text(
        "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency\n"
        "2,9.25,30,214000,221500,225000,232000\n"
    )
    front = perf.Front("tetriserve", "grpc", "localhost:8001")
    row = perf.read_report(front, report)
    assert (row.images_per_s, row.p50_ms, row.p90_ms, row.p99_ms) == (9.25, 214.0, 221.5, 232.0)


def test_request_never_asks_for_progress(perf: ModuleType) -> None:
    data = perf.request_data(Size(width=64, height=32), 4, 2.0)["data"][0]
    assert "stream_progress" not in data
    assert (data["width"], data["height"]) == ([64], [32])


def test_analyzer_runs_with_the_libraries_of_the_wheel(perf: ModuleType, tmp_path: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": perf.library_path(tmp_path)}
    run = subprocess.run(
        [perf.find_analyzer(), "--version"], env=environment, capture_output=True, text=True, check=False
    )
    assert "Perf Analyzer" in run.stdout + run.stderr
