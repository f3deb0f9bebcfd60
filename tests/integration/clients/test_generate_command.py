"""`tetriserve generate` as a user runs it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.integration.clients.conftest import outcomes, wait_for_outcome
from tests.integration.conftest import Server

COMMAND = [sys.executable, "-m", "tetriserve_backend.cli.app", "generate"]


def generate(*options: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *options], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_image_is_written_and_its_story_told(server: Server, tmp_path: Path) -> None:
    options = ("--size", "128x64", "--slo", "20", "--steps", "3", "--seed", "5", "-o", "fox.png")
    run = generate("a red fox", *options, "--url", server.grpc_url, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "fox.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (128, 64))
    assert "fox.png: 128x64, seed 5" in run.stdout
    assert "deadline met" in run.stdout
    assert "degree of each denoise segment:" in run.stdout
    assert "3/3" in run.stderr


def test_several_images_get_a_file_each(server: Server, tmp_path: Path) -> None:
    options = ("--size", "64x64", "--steps", "2", "--seed", "5", "--num-images", "2", "--model", "demo-flux")
    run = generate("x", *options, "-o", "fox.webp", "--url", server.grpc_url, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox-0.webp", "fox-1.webp"]
    assert "fox-0.webp: 64x64, seed 5" in run.stdout
    assert "fox-1.webp: 64x64, seed 6" in run.stdout
    assert "4/4" in run.stderr


def test_raw_image_is_named_and_sized_as_such(server: Server, tmp_path: Path) -> None:
    options = ("--size", "96x64", "--steps", "1", "--output-format", "raw", "--url", server.http_url)
    run = generate("x", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "image.raw").stat().st_size == 96 * 64 * 3


def test_late_image_is_called_late(server: Server, tmp_path: Path) -> None:
    run = generate("x", "--size", "128x128", "--slo", "0.001", "--url", f"grpc://{server.grpc_url}/", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "deadline missed" in run.stdout


def test_suffix_chooses_the_format_and_http_serves_too(server: Server, tmp_path: Path) -> None:
    run = generate("x", "--size", "64x64", "-o", "x.webp", "--url", server.http_url, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "x.webp") as image:
        assert image.format == "WEBP"


def test_each_kind_of_failure_has_its_exit_status(server: Server, tmp_path: Path) -> None:
    url = ("--url", server.grpc_url)
    refused = generate("x", "--size", "100x64", *url, cwd=tmp_path)
    assert (refused.returncode, "width" in refused.stderr) == (1, True), refused.stderr
    refused = generate("x", "--negative-prompt", "blurry", *url, cwd=tmp_path)
    assert (refused.returncode, "negative_prompt" in refused.stderr) == (1, True), refused.stderr
    assert generate("x", "--size", "big", *url, cwd=tmp_path).returncode == 2
    absent = generate("x", "--url", "localhost:1", cwd=tmp_path)
    assert (absent.returncode, "localhost:1" in absent.stderr) == (3, True), absent.stderr
    assert generate("x", "--size", "256x256", "--steps", "200", "--timeout", "1", *url, cwd=tmp_path).returncode == 4
    assert list(tmp_path.iterdir()) == []


def test_interrupt_cancels_on_the_server(server: Server, tmp_path: Path) -> None:
    before = set(outcomes(server))
    options = ("x", "--size", "256x256", "--steps", "200", "--url", server.grpc_url)
    process = subprocess.Popen([*COMMAND, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "interrupted" in errors) == (130, True), errors
    (request_id,) = set(outcomes(server)) - before
    assert wait_for_outcome(server, request_id) == "cancel"
