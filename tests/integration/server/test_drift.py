"""A server that is given a wrong latency table finds out, says so, and plans with a corrected one."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import Server
from tests.integration.server.wire import generate, post


def status(server: Server) -> dict[str, object]:
    answer = post(server.http_url, "/v2/models/denoise/generate", {"op": "status"})
    return dict(json.loads(answer.body["metadata"]))


def test_a_table_that_promises_too_much_is_told_of_and_corrected(
    server: Server, own_server: Callable[..., Server], tmp_path: Path
) -> None:
    models = status(server)["models"]
    assert isinstance(models, dict)
    ((_, model),) = models.items()
    table = model["latency_table"]
    # By so much that it is still too fast where the other server measured it on a busier machine.
    for entry in table["step"]:
        entry["seconds"] /= 10.0
    path = tmp_path / "stale.latency.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    running = own_server("--set", f"latency_table={path}", "--policy", "fixed-sp1")
    # A table is reviewed once a second at most, and ten requests may take less.
    give_up_s = time.monotonic() + 60.0
    seed, drift, corrected = 0, {}, False
    while seed < 10 or not (corrected or time.monotonic() > give_up_s):
        answer = generate(running.http_url, {"prompt": "drift", "num_inference_steps": 6, "seed": seed})
        assert answer.status == 200, answer.error
        seed += 1
        drift = status(running)["drift"]
        assert isinstance(drift, dict)
        corrected = bool(drift["corrected"])
    (shape,) = (shape for shape in drift["shapes"] if shape["stage"] == "denoise")
    assert shape["ratio"] > 1.5 and shape["factor"] > 1.5 and drift["corrected"] == [shape["model"]]
    assert re.search(r"a step of 128x128 on 1 rank takes \d+\.\d\d times what the latency table says", running.log)
    labels = ",".join(
        f'{name}="{shape[name]}"' for name in sorted(("batch", "cfg", "degree", "model", "shape", "stage"))
    )
    shown: dict[str, float] = {}
    give_up_s = time.monotonic() + 30.0
    # The last answers may have come before the figures were shown anew.
    while not (
        f"tetriserve_step_time_ratio{{{labels}}}" in shown and shown["tetriserve_drift_warnings_total"] >= 1
    ) and (time.monotonic() < give_up_s):
        time.sleep(0.2)
        shown = metrics(running)
    assert shown[f"tetriserve_step_time_ratio{{{labels}}}"] > 1.5, shown
    assert shown["tetriserve_drift_warnings_total"] >= 1
    assert any(name.startswith('tetriserve_rank_time_ratio{rank="') for name in shown)
    assert drift["quarantined"] == []
    assert {name: value for name, value in shown.items() if "quarantined" in name} == {
        'tetriserve_rank_quarantined{rank="0"}': 0.0,
        'tetriserve_rank_quarantined{rank="1"}': 0.0,
    }


def metrics(server: Server) -> dict[str, float]:
    """What `/metrics` shows, by name and labels in alphabetical order."""
    url = f"http://127.0.0.1:{server.local.ports.metrics}/metrics"
    found = {}
    with urllib.request.urlopen(url, timeout=10) as response:
        for line in response.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name, _, labels = name.partition("{")
                ordered = ",".join(sorted(labels.removesuffix("}").split(",")))
                found[f"{name}{{{ordered}}}" if ordered else name] = float(value)
    return found
