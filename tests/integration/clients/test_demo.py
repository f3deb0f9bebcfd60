"""`tetriserve demo` from start to end, with a server of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from PIL import Image

from tetriserve_backend.cli.timeline_check import find_problems
from tetriserve_backend.cli.timeline_view import TimelineView

COMMAND = [sys.executable, "-m", "tetriserve_backend.cli.app", "demo", "--out", "out", "--steps", "2"]


def test_demo_leaves_images_trace_timeline_and_picture(tetriserve_home: Path, tmp_path: Path) -> None:
    run = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    out = tmp_path / "out"
    trace = [json.loads(line) for line in (out / "demo.trace.jsonl").read_text().splitlines()]
    assert len(trace) == 12
    assert len({(line["height"], line["width"]) for line in trace}) == 4
    for line in trace:
        with Image.open(out / f"{line['id']}.png") as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (line["width"], line["height"]))
        assert line["id"] in run.stdout
    view = TimelineView.load(out / "demo.timeline.json")
    assert {request.request_id: request.outcome for request in view.requests} == {
        line["id"]: "finish" for line in trace
    }
    slo_s = {line["id"]: line["slo_s"] for line in trace}
    assert all(abs(r.deadline_s - r.arrival_s - slo_s[r.request_id]) < 0.002 for r in view.requests)
    events = json.loads((out / "demo.timeline.json").read_text())["traceEvents"]
    assert find_problems(events, num_gpus=2) == []
    with Image.open(out / "demo.schedule.png") as picture:
        picture.load()


def test_interrupted_demo_leaves_no_process(tetriserve_home: Path, tmp_path: Path) -> None:
    demo = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: set[psutil.Process] = set()
    log = tmp_path / "out" / "server.log"
    give_up_s = time.monotonic() + 60.0
    while not (log.exists() and "tetriserve:" in log.read_text()):
        assert time.monotonic() < give_up_s
        time.sleep(0.1)
    family.update(psutil.Process(demo.pid).children(recursive=True))
    demo.send_signal(signal.SIGINT)
    assert demo.wait(90) == 130
    _, alive = psutil.wait_procs(list(family), timeout=60)
    assert alive == []
