"""`tetriserve workload`, `simulate` and `sweep` as a user calls them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tetriserve_backend.cli import sweep
from tetriserve_backend.cli.app import app
from tetriserve_backend.simulator.bound import BoundError, clairvoyant
from tetriserve_backend.simulator.bound.milp import maximise

TABLE = Path(__file__).parents[3] / "model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json"

SMALL_GRID = (
    "{policies: [fixed-sp8], mixes: [uniform], slo_scales: [1.5], rates_per_minute: [24], seeds: [1],"
    " workload: {requests: 6}, bound_time_limit_s: 0}\n"
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRISERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def tetriserve(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def make_trace(*options):
    tetriserve("workload", "-o", "a.trace.jsonl", "--requests", 30, "--rate", 30, *options)
    return Path("a.trace.jsonl")


def test_a_workload_is_simulated_and_its_labels_reach_the_summary():
    make_trace("--mix", "skewed", "--slo-scale", 1.2, "--seed", 5, "--steps", "10:20")
    tetriserve(
        "simulate", "--latency-table", TABLE, "--trace", "a.trace.jsonl", "--policy", "tetriserve,fixed-sp2",
        "--bound", "--summary", "out/a.summary.json", "--timeline", "out/a.timeline.json",
    )  # fmt: skip
    for policy in ("tetriserve", "fixed-sp2"):
        summary = json.loads(Path(f"out/a.{policy}.summary.json").read_text())
        assert summary["policy"] == policy and summary["requests"] == 30
        assert summary["on_time"] <= summary["bound_on_time"] <= 30
        assert summary["labels"]["slo_scale"] == 1.2 and summary["labels"]["mix"] == "skewed"
        assert json.loads(Path(f"out/a.{policy}.timeline.json").read_text())["traceEvents"]


def test_json_is_printed_where_nobody_looks_and_a_table_on_demand():
    trace = make_trace()
    call = ("simulate", "--latency-table", TABLE, "--trace", trace, "--policy", "rssp", "--label", "note=x")
    printed = json.loads(tetriserve(*call).stdout)
    assert printed["policy"] == "rssp" and printed["labels"]["note"] == "x"
    assert "rssp" in tetriserve(*call, "--output", "table").stdout


def test_settings_noise_dispatch_and_failures_reach_the_run():
    trace = make_trace("--mix", "2048x2048")
    base = ("simulate", "--latency-table", TABLE, "--trace", trace, "--policy", "fixed-sp8")

    def mean_latency_s(*options):
        return json.loads(tetriserve(*base, *options).stdout)["latency_s"]["mean"]

    plain = mean_latency_s()
    assert mean_latency_s("--dispatch-seconds", 0.5) > plain
    assert mean_latency_s("--dispatch-seconds", 0.5, "--set", "scheduler.max_segment_steps=20") < mean_latency_s(
        "--dispatch-seconds", 0.5
    )
    assert mean_latency_s("--fail", "3@5:10") > plain
    assert mean_latency_s("--noise-cv", 0.1) != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "nobody"), "unknown policy"),
        (("--fail", "8@1"), "ranks 0 to 7"),
        (("--fail", "one"), "RANK@SECONDS"),
        (("--set", "scheduler.colour=red"), "unknown setting"),
        (("--label", "x"), "KEY=VALUE"),
        (("--trace", "none.jsonl"), "cannot be read"),
    ],
)
def test_a_wrong_option_is_explained(options, message):
    trace = make_trace()
    result = tetriserve("simulate", "--latency-table", TABLE, "--trace", trace, *options, status=2)
    assert message in result.output and "Traceback" not in result.output


def test_a_workload_takes_weights_from_a_file_slos_and_other_arrivals():
    Path("mix.yaml").write_text("256x256: 1\n512x768: 1\n")
    make_trace("--mix", "mix.yaml", "--slo", "512x768=9", "--arrivals", "gamma", "--cv", 3)
    lines = [json.loads(line) for line in Path("a.trace.jsonl").read_text().splitlines()]
    assert {(line["height"], line["width"]) for line in lines} == {(256, 256), (512, 768)}
    assert {line["slo_s"] for line in lines} == {9.0}, "the only SLO given goes for every shape"


def test_a_workload_comes_from_another_system():
    Path("hetu.txt").write_text("Request(request_id=0, timestamp=0.5, height=256, width=256, num_inference_steps=28)\n")
    tetriserve("workload", "-o", "b.trace.jsonl", "--import", "hetu-dit", "hetu.txt")
    (line,) = Path("b.trace.jsonl").read_text().splitlines()
    assert json.loads(line)["arrival_s"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mix", "zipf"), "uniform, skewed"),
        (("--steps", "few"), "--steps"),
        (("--slo", "256x256"), "--slo"),
        (("--config", "none.yaml"), "none.yaml"),
    ],
)
def test_a_wrong_workload_is_explained(options, message):
    result = tetriserve("workload", "-o", "a.trace.jsonl", *options, status=2)
    assert message in result.output and "Traceback" not in result.output


def test_a_sweep_prints_every_cell_beside_the_bound_and_keeps_the_summaries():
    Path("grid.yaml").write_text(
        "policies: [tetriserve, fixed-sp8]\nmixes: [uniform]\nslo_scales: [1.0, 1.5]\nrates_per_minute: [24]\n"
        "seeds: [1]\nworkload: {requests: 12}\n"
    )
    result = tetriserve("sweep", "--config", "grid.yaml", "--latency-table", TABLE, "--processes", 1, "-o", "out")
    assert "of bound" in result.output and "fixed-sp8" in result.output
    assert len(list(Path("out").glob("*.summary.json"))) == 4
    assert "none.yaml" in tetriserve("sweep", "--config", "none.yaml", "--latency-table", TABLE, status=2).output


def test_a_sweep_and_a_benchmark_refuse_the_folder_of_each_other():
    Path("grid.yaml").write_text(SMALL_GRID)
    Path("bench.yaml").write_text(f"where: simulator\nlatency_table: {TABLE}\ngrid: {SMALL_GRID}")
    sweep = ("sweep", "--config", "grid.yaml", "--latency-table", TABLE, "--processes", 1)
    tetriserve(*sweep, "-o", "swept")
    for options in ((), ("--fresh",)):
        assert "another --out" in tetriserve("bench", "bench.yaml", "-o", "swept", *options, status=2).output
    tetriserve("bench", "bench.yaml", "-o", "benched", "--processes", 1)
    summary = Path("benched/c000.fixed-sp8.summary.json")
    before = summary.stat().st_mtime_ns
    assert "use another folder" in tetriserve(*sweep, "-o", "benched", status=2).output
    assert summary.stat().st_mtime_ns == before


@pytest.mark.parametrize(("out", "named"), [("taken", "taken"), ("taken/below/it", "taken"), ("/proc/out", "/proc")])
def test_a_sweep_that_cannot_write_its_summaries_is_refused_before_it_is_run(monkeypatch, out, named):
    monkeypatch.setattr(sweep, "run_sweep", lambda *_, **__: pytest.fail("it ran"))
    Path("taken").write_text("mine")
    Path("grid.yaml").write_text(SMALL_GRID)
    result = tetriserve("sweep", "--config", "grid.yaml", "--latency-table", TABLE, "-o", out, status=2)
    assert f"--out {out}: " in result.output and named in result.output and Path("taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "status"),
    [(BoundError("bound: HiGHS ended with Infeasible"), 3), (OSError(28, "No space left on device"), 2)],
)
def test_what_ends_a_sweep_early_is_told_and_what_is_done_is_shown(monkeypatch, error, status):
    run = sweep.run_sweep

    def failing(*arguments, **options):
        yield next(run(*arguments, **options))
        raise error

    monkeypatch.setattr(sweep, "run_sweep", failing)
    Path("grid.yaml").write_text(SMALL_GRID.replace("seeds: [1]", "seeds: [1, 2]"))
    command = ("sweep", "--config", "grid.yaml", "--latency-table", TABLE, "--processes", 1)
    result = tetriserve(*command, status=status)
    assert f"tetriserve: {error}" in result.output and "1 of 2 cells are done" in result.output
    assert "means over the grid" in result.output


@pytest.mark.parametrize("where", ["sweep", "bench"])
def test_mixes_of_other_weights_have_rows_of_their_own(where):
    mixes = "mixes: [{256x256: 1, 2048x2048: 9}, {256x256: 9, 2048x2048: 1}]"
    grid = SMALL_GRID.replace("mixes: [uniform]", mixes)
    bench = f"where: simulator\nlatency_table: {TABLE}\ngrid: {grid}"
    Path("grid.yaml").write_text(grid if where == "sweep" else bench)
    options = ("--config", "grid.yaml", "--latency-table", TABLE) if where == "sweep" else ("grid.yaml",)
    printed = tetriserve(where, *options, "--processes", 1, "-o", "out").stdout
    for weights in ((1, 9), (9, 1)):
        assert len(re.findall(rf"256x256:{weights[0]} +2048x2048:{weights[1]}\b", printed)) == 1, printed


def test_a_bound_that_fails_ends_a_benchmark_with_one_line_and_what_is_done_is_compared(monkeypatch):
    grid = SMALL_GRID.replace("seeds: [1]", "seeds: [1, 2]").replace("limit_s: 0", "limit_s: 1")
    Path("grid.yaml").write_text(f"where: simulator\nlatency_table: {TABLE}\ngrid: {grid}")
    calls = []

    def failing(model, **options):
        calls.append(model)
        if len(calls) > 1:
            raise BoundError("bound: HiGHS ended with Infeasible")
        return maximise(model, **options)

    monkeypatch.setattr(clairvoyant, "maximise", failing)
    result = tetriserve("bench", "grid.yaml", "-o", "out", "--processes", 1, status=1)
    assert "tetriserve: bound: HiGHS ended with Infeasible" in result.output
    assert "| uniform | 1.5 | 24 |" in Path("out/comparison.md").read_text()


@pytest.mark.parametrize("where", ["sweep", "bench"])
def test_an_error_about_a_whole_grid_says_no_more_than_it(where):
    grid = SMALL_GRID.replace("[fixed-sp8]", "[tetris, tetris]")
    Path("grid.yaml").write_text(grid if where == "sweep" else f"where: simulator\nlatency_table: a\ngrid: {grid}")
    command = {"sweep": ("sweep", "--config", "grid.yaml", "--latency-table", TABLE), "bench": ("bench", "grid.yaml")}
    told = " ".join(tetriserve(*command[where], status=2).output.split())
    field = "grid: " if where == "bench" else ""
    assert told == (f"tetriserve: grid.yaml: {field}policies: two are named 'tetris'; give each a name of its own")


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_leaves_and_shows_the_cells_of_a_sweep_that_are_done(processes):
    Path("grid.yaml").write_text(
        "policies: [fixed-sp8]\nmixes: [uniform]\nslo_scales: [1.0]\nrates_per_minute: [24]\n"
        f"seeds: {list(range(400))}\nworkload: {{requests: 200}}\nbound_time_limit_s: 0\n"
    )
    command = [sys.executable, "-m", "tetriserve_backend.cli.app", "sweep", "--config", "grid.yaml"]
    command += ["--latency-table", str(TABLE), "--processes", str(processes), "-o", "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline_s = time.monotonic() + 60.0
        while len(list(Path("out").glob("*.summary.json"))) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        # As a terminal does it: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60.0)
    assert process.returncode == 130, stderr
    found = re.search(r"(\d+) of 400 cells are done", stderr)
    assert found is not None, stderr
    # It may have come just behind the file of one more.
    written = len(list(Path("out").glob("*.summary.json")))
    assert 3 <= written < 400 and int(found[1]) in (written - 1, written)
    assert "means over the grid" in stdout


def test_a_sweep_does_not_wait_for_long_cells_when_it_is_interrupted_nor_leave_them_behind():
    Path("grid.yaml").write_text(
        "policies: [fixed-sp8]\nmixes: [uniform]\nslo_scales: [1.0, 1.5]\nrates_per_minute: [24]\nseeds: [1]\n"
        "workload: {requests: 100000000}\nbound_time_limit_s: 0\n"
    )
    command = [sys.executable, "-m", "tetriserve_backend.cli.app", "sweep", "--config", "grid.yaml"]
    with subprocess.Popen(
        [*command, "--latency-table", str(TABLE), "--processes", "2"], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline_s = time.monotonic() + 60.0
        # The two that run cells, and what keeps account of what they share.
        while len(workers.read_text().split()) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=60.0)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and b"0 of 2 cells are done" in stderr, stderr
    left_s = time.monotonic() + 10.0
    while _is_there(process.pid) and time.monotonic() < left_s:
        time.sleep(0.02)
    assert not _is_there(process.pid)


def _is_there(process_group: int) -> bool:
    """Whether a process of the group has not ended; one that nobody has asked for its status has."""
    stats = (path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    return any(int(group) == process_group and state != "Z" for state, _, group, *_ in stats)


def test_each_model_of_a_trace_has_a_table_of_its_own():
    lines = [json.loads(line) for line in make_trace("--mix", "256x256").read_text().splitlines()]
    slow = json.loads(TABLE.read_text())
    for entry in slow["step"]:
        entry["seconds"] *= 3
    Path("slow.latency.json").write_text(json.dumps(slow))
    named = [{**line, "model": "quick" if number % 2 else "slow"} for number, line in enumerate(lines)]
    Path("b.trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in named))
    both = ("--latency-table", f"quick={TABLE}", "--latency-table", "slow=slow.latency.json")
    summary = json.loads(tetriserve("simulate", "--trace", "b.trace.jsonl", *both, "--bound").stdout)
    assert summary["outcomes"] == {"finish": 30}
    assert 15 <= summary["on_time"] <= summary["bound_on_time"] < 30, "1.5 s are not enough for a slow one"
    assert summary["on_time_per_gpu_second"] > 0
    one = json.loads(tetriserve("simulate", "--trace", "b.trace.jsonl", *both[:2]).stdout)
    assert one["outcomes"] == {"finish": 15, "reject": 15}


@pytest.fixture
def without_2048():
    """The name of a table that lacks the largest resolution of the uniform mix."""
    table = json.loads(TABLE.read_text())
    for kind in ("step", "decode"):
        table[kind] = [entry for entry in table[kind] if entry["height"] < 2048]
    Path("small.latency.json").write_text(json.dumps(table))
    return "small.latency.json"


LACKING = re.compile(r"latency table small\.latency\.json: step: 2048x2048 has .*; fix: `tetriserve profile")


@pytest.mark.parametrize(
    "options",
    [
        ("--latency-table", "small.latency.json"),
        ("--latency-table", "small.latency.json", "--dispatch-seconds", 0.1),
        ("--latency-table", TABLE, "--true-latency-table", "small.latency.json"),
        ("--latency-table", f"a={TABLE}", "--latency-table", "b=small.latency.json"),
    ],
)
def test_a_trace_is_refused_before_it_is_served_where_a_table_of_its_models_lacks_a_shape(without_2048, options):
    lines = [json.loads(line) for line in make_trace().read_text().splitlines()]
    model = "b" if "=" in str(options[-1]) else ""
    Path("b.trace.jsonl").write_text("".join(json.dumps({**line, "model": model}) + "\n" for line in lines))
    files = ("--timeline", "x.timeline.json", "--summary", "x.summary.json")
    result = tetriserve("simulate", "--trace", "b.trace.jsonl", *options, *files, status=2)
    assert LACKING.search(result.output) and not list(Path().glob("x.*"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_trace_from_a_pipe_is_read_once(without_2048):
    lines = make_trace().read_text()
    for table, status in ((TABLE, 0), (without_2048, 2)):
        os.mkfifo("pipe.jsonl")
        with subprocess.Popen(["sh", "-c", "cat a.trace.jsonl > pipe.jsonl"]) as writer:
            result = tetriserve("simulate", "--trace", "pipe.jsonl", "--latency-table", table, status=status)
            writer.kill()
        Path("pipe.jsonl").unlink()
        if status:
            assert LACKING.search(result.output)
        else:
            assert json.loads(result.stdout)["requests"] == len(lines.splitlines())


@pytest.mark.parametrize("dispatch", ["", "dispatch_seconds: 0.1\n"])
def test_a_sweep_is_refused_before_it_is_run_where_the_table_lacks_a_shape_of_its_grid(without_2048, dispatch):
    Path("grid.yaml").write_text(
        f"policies: [fixed-sp1]\nmixes: [256x256, uniform]\nworkload: {{requests: 12}}\n{dispatch}"
    )
    result = tetriserve(
        "sweep", "--config", "grid.yaml", "--latency-table", without_2048, "--processes", 1, "-o", "out", status=2
    )
    assert LACKING.search(result.output) and not Path("out").exists()


@pytest.mark.parametrize("where", [("where=simulator",), ("where=live", "grid.workload.prompts=[a fox]")])
def test_a_benchmark_is_refused_before_it_is_run_where_the_table_lacks_a_shape_of_its_grid(without_2048, where):
    Path("bench.yaml").write_text(f"latency_table: {without_2048}\ngrid: {{policies: [fixed-sp1], mixes: [uniform]}}\n")
    settings = [part for one in where for part in ("--set", one)]
    result = tetriserve("bench", "bench.yaml", "-o", "out", *settings, status=2)
    assert re.search(r"small\.latency\.json: step: 2048x2048 has .*; fix: `tetriserve profile", result.output)
    assert not list(Path("out").glob("*.summary.json"))


@pytest.mark.parametrize("tables", [(TABLE, TABLE), (f"a={TABLE}", TABLE), (f"a={TABLE}", f"a={TABLE}")])
def test_several_tables_need_a_name_each(tables):
    options = [part for table in tables for part in ("--latency-table", table)]
    result = tetriserve("simulate", "--trace", make_trace(), *options, status=2)
    assert "NAME=FILE" in result.output
