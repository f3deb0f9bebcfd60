"""The tools that Triton users own, run short against a real server."""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.integration.conftest import Server
from tetriserve_client.local_server import LocalPorts

CLIENTS = Path(__file__).parents[3] / "clients"


def test_perf_analyzer_measures_both_fronts(server: Server, tmp_path: Path) -> None:
    options = ["--size", "128x128", "--steps", "2", "--window-s", "1.5", "--out", str(tmp_path)]
    urls = ["--grpc-url", server.grpc_url, "--http-url", server.http_url]
    command = [sys.executable, str(CLIENTS / "perf.py"), *urls, *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stderr
    assert "tetriserve (grpc)" in run.stdout
    assert "tetriserve_infer (http)" in run.stdout
    assert {path.name for path in tmp_path.glob("*.csv")} == {"tetriserve.csv", "tetriserve_infer.csv"}


def test_load_prints_the_on_time_ratio(server: Server, tmp_path: Path) -> None:
    options = ["--run-time", "5", "--steps", "2", "--users", "2", "--out", str(tmp_path)]
    command = [sys.executable, str(CLIENTS / "load.py"), "--url", server.http_url, *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    total = next(line for line in run.stdout.splitlines() if line.strip().startswith("all"))
    assert int(total.split()[3]) > 0, run.stdout
    assert (tmp_path / "locust.html").exists()


def test_too_few_on_time_fail_the_load(server: Server, tmp_path: Path) -> None:
    script = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(CLIENTS / "locustfile.py"),
        "--headless",
        "--host",
        server.http_url,
    ]
    options = ["-u", "1", "-t", "3s", "--stop-timeout", "20", "--steps", "2", "--slo-scales", "0.001"]
    command = [*script, *options, "--min-on-time", "0.5"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 3, run.stdout + run.stderr


def test_locusts_own_page_shows_the_ratio(server: Server, tmp_path: Path) -> None:
    port = LocalPorts.free().http
    script = [sys.executable, "-m", "locust", "-f", str(CLIENTS / "locustfile.py"), "--host", server.http_url]
    options = ["--web-host", "127.0.0.1", "--web-port", str(port), "--autostart", "-u", "1", "--steps", "2"]
    options += ["--num-images", "2", "--model", "demo-flux"]
    with (tmp_path / "locust.log").open("wb") as log:
        locust = subprocess.Popen([*script, *options], cwd=tmp_path, stdout=log, stderr=log)
    try:
        rows = wait_for_rows(f"http://127.0.0.1:{port}/on-time/stats")
        page = get(f"http://127.0.0.1:{port}/")
    finally:
        locust.terminate()
        locust.wait(60)
    assert 'id="on-time"' in page
    assert rows[-1]["resolution"] == "all"
    assert 0 < rows[-1]["on_time"] <= rows[-1]["submitted"]


def get(url: str) -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def wait_for_rows(url: str) -> list[dict[str, Any]]:
    give_up_s = time.monotonic() + 30.0
    while True:
        try:
            rows = json.loads(get(url))
        except (OSError, ValueError):
            rows = []
        if rows and rows[-1]["on_time"]:
            return list(rows)
        assert time.monotonic() < give_up_s, rows
        time.sleep(0.3)


def test_soak_sends_every_kind_of_request_and_leaves_nothing_behind(tetriserve_home: Path, tmp_path: Path) -> None:
    options = ["--requests", "30", "--warm-up", "10", "--every", "10", "--no-judge", "--out", str(tmp_path)]
    command = [sys.executable, str(CLIENTS / "soak.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for way in ("whole", "progress", "http", "cancelled", "refused"):
        assert f" {way}" in run.stdout
    samples = (tmp_path / "memory.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in samples] == ["requests", "0", "10", "20", "30", "40"]
    for process in ("supervisor", "tritonserver", "stub of denoise", "stub of preprocess", "nursery", "rank"):
        assert f",{process} (" in samples[0]
