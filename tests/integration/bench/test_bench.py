"""`tetriserve bench` on real servers: everything is written, and a benchmark that is interrupted goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tetriserve_backend.latency_table import LatencyTable

COMMAND = (sys.executable, "-m", "tetriserve_backend.cli.app", "bench")
POLICIES = ["tetris", "fixed-sp1"]
TIMEOUT_S = 240.0


@pytest.fixture
def config(tetriserve_home: Path, tmp_path: Path) -> Path:
    """Two policies and a short trace of small images."""
    path = tmp_path / "tiny.yaml"
    grid = {
        "policies": POLICIES,
        "mixes": [{"64x64": 1, "128x128": 1}],
        "slo_scales": [8.0],
        "rates_per_minute": [240],
        "seeds": [1],
        "workload": {"requests": 5, "min_steps": 4, "max_steps": 4, "prompts": ["a red fox"]},
    }
    spec = {"grid": grid, "slo": "fastest", "server": {"executor": {"world_size": 2}}, "measure_repeats": 2}
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def summaries(out: Path) -> set[str]:
    return {path.name.removesuffix(".summary.json") for path in out.glob("*.summary.json")}


def test_an_interrupted_benchmark_leaves_what_is_done_and_goes_on_from_there(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, str(config), "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        give_up_s = time.monotonic() + TIMEOUT_S
        while not summaries(out):
            assert first.poll() is None and time.monotonic() < give_up_s, first.communicate()[0]
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        printed, _ = first.communicate(timeout=TIMEOUT_S)
    finally:
        first.kill()
    assert first.returncode == 130 and "interrupted" in printed and "tetris" in printed
    done = summaries(out)
    assert done == {"c000.tetris"}
    kept = (out / "c000.tetris.summary.json").stat().st_mtime_ns

    second = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert second.returncode == 0, second.stderr
    assert summaries(out) == {f"c000.{policy}" for policy in POLICIES}
    assert (out / "c000.tetris.summary.json").stat().st_mtime_ns == kept
    _check_results(out, second.stdout)


def _check_results(out: Path, printed: str) -> None:
    table = LatencyTable.load(out / "measured.latency.json")
    assert table.source == "measured" and set(table.resolutions) == {(64, 64), (128, 128)}
    for name in summaries(out):
        summary = json.loads((out / f"{name}.summary.json").read_text(encoding="utf-8"))
        answers = [json.loads(line) for line in (out / f"{name}.answers.jsonl").read_text().splitlines()]
        assert summary["outcomes"] == {"finish": 5} and [answer["error"] for answer in answers] == [""] * 5
        assert summary["policy"] == name.partition(".")[2] and summary["labels"]["where"] == "live"
        assert (out / "simulated" / f"{name}.summary.json").exists()
    live, fidelity = ((out / f"comparison.{n}.csv").read_text(encoding="utf-8").splitlines() for n in (1, 2))
    assert [row.partition(",")[0] for row in live[1:]] == POLICIES == [row.partition(",")[0] for row in fidelity[1:]]
    assert all(row.endswith(",good") for row in live[1:]), live
    assert "live and simulated" in printed and "lead of tetris over the best static policy, fixed-sp1" in printed
    assert "fixed-sp1" in (out / "comparison.md").read_text(encoding="utf-8")
    assert "<img" in (out / "report.html").read_text(encoding="utf-8")


def test_the_simulator_takes_the_same_file(tmp_path: Path) -> None:
    benchmarks = Path(__file__).parents[3] / "profiling" / "benchmarks"
    smaller = [
        *("--set", "grid.seeds=[1]", "--set", "grid.slo_scales=[1.0, 1.5]", "--set", "grid.workload.requests=20"),
        *("--set", "grid.rates_per_minute=[12]", "--set", "grid.policies=[tetriserve, rssp]", "--processes", "1"),
    ]
    command = [*COMMAND, str(benchmarks / "paper-flux-8xh100.yaml"), "--out", str(tmp_path / "out"), *smaller]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert len(summaries(tmp_path / "out")) == 8
    shown = {f"c003.{policy}.timeline.json" for policy in ("tetriserve", "rssp")}
    assert {path.name for path in (tmp_path / "out").glob("*.timeline.json")} == shown
    assert [path.name for path in (tmp_path / "out").glob("*.trace.jsonl")] == ["c003.trace.jsonl"]
    assert [path.name for path in (tmp_path / "out").glob("*.latency.json")] == ["given.latency.json"]
    assert "means over the grid" in result.stdout and (tmp_path / "out" / "slo_attainment_by_slo_scale.png").exists()
