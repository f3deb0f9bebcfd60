"""How `tetriserve bench` ends, and what it leaves, whatever the servers do."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.cli.bench.test_live import SPEC, TABLE, Client, Machine
from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.bench import live
from tetriserve_backend.cli.bench.live import LiveBench
from tetriserve_backend.cli.bench.observed import read_events, write_timeline
from tetriserve_backend.cli.bench.replay import Answer
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.trace import read_trace
from tetriserve_client import RequestTimeoutError

RUNS = {f"c00{cell}.{name}" for cell in (0, 1) for name in ("tetris", "patient")}


class RefusingMachine(Machine):
    """Its servers refuse every request of the runs that are named, before the engine."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    def replay(self, run, url, prefix, folder):
        error = "INVALID_ARGUMENT: prompt: got [] [/red]" if run.name in self.refused else ""
        if error:
            write_timeline(Path(self.running[url].settings["timeline"]), [])
        else:
            super().replay(run, url, prefix, folder)
        ids = [request.id for request in read_trace(folder.trace(run))]
        answers = [Answer(name, 0.0, 1.0, total_s=None if error else 1.0, error=error) for name in ids]
        folder.answers(run).write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the command on such a machine; its result, with what it printed."""
    monkeypatch.chdir(tmp_path)
    TABLE.save("given.latency.json")
    settings = {**SPEC, "hold_pace": None, "take_turns": False, "latency_table": "given.latency.json"}
    Path("bench.yaml").write_text(yaml.safe_dump(settings))

    def run(machine):
        monkeypatch.setattr(live, "_SETTLE_S", 0.0)
        monkeypatch.setattr(live, "LocalServer", machine.server)
        monkeypatch.setattr(live, "TetriserveClient", Client)

        def replay(self, run, url, prefix):
            machine.replay(run, url, prefix, self._folder)

        monkeypatch.setattr(LiveBench, "_replay", replay)
        return CliRunner().invoke(app, ["bench", "bench.yaml", "-o", "out"])

    return run


def test_a_benchmark_whose_runs_have_their_images_is_done_and_goes_on_where_it_was(bench):
    machine = RefusingMachine(refused=())
    bench(machine)
    Path("out/c001.patient.summary.json").unlink()
    # As an earlier version called the copy of a table that is given.
    Path("out/given.latency.json").rename("out/measured.latency.json")
    result = bench(machine)
    assert machine.served[len(RUNS) :] == ["c001.patient c001-"]
    assert LatencyTable.load("out/given.latency.json").to_dict() == TABLE.to_dict()
    assert result.exit_code == 0, result.output
    assert {path.name.removesuffix(".summary.json") for path in Path("out").glob("*.summary.json")} == RUNS


@pytest.mark.parametrize("kind", ["summary.json", "timeline.json", "answers.jsonl", "trace.jsonl"])
def test_a_broken_file_of_a_run_that_is_done_is_named_with_the_way_out_before_anything_is_run(bench, kind):
    machine = RefusingMachine(refused=())
    bench(machine)
    Path("out/c001.patient.summary.json").unlink()
    broken = Path(f"out/c000.{'' if kind.startswith('trace') else 'tetris.'}{kind}")
    # No line is a trace, or answers, too.
    empty = [] if kind.endswith("jsonl") else [""]
    for text in (*empty, "{", "{}", "[]", "null", "[{}]", '{"policy": 3}', '{"traceEvents": [{"ph": "X"}]}'):
        broken.write_text(text)
        result = bench(machine)
        assert result.exit_code == 2 and len(machine.served) == len(RUNS), (text, result.output, result.exception)
        told = " ".join(result.output.split())
        assert f"tetriserve: trace {broken}" in told or f"tetriserve: {broken}" in told
        way_out = "it to have it made" if kind == "trace.jsonl" else "out/c000.tetris.summary.json to run it"
        assert told.endswith(f"; delete {way_out} again, or use --fresh")


@pytest.mark.parametrize("kind", ["timeline.json", "answers.jsonl", "trace.jsonl"])
def test_a_missing_file_of_a_run_that_is_done_is_named_with_the_way_out(bench, kind):
    machine = RefusingMachine(refused=())
    bench(machine)
    missing = Path(f"out/c000.{'' if kind.startswith('trace') else 'tetris.'}{kind}")
    missing.unlink()
    result = bench(machine)
    if kind == "trace.jsonl":
        assert result.exit_code == 0 and missing.exists(), "it follows from the settings"
    else:
        assert result.exit_code == 2 and str(missing) in result.output and "to run it again" in result.output
        Path("out/c000.tetris.summary.json").unlink()
        assert bench(machine).exit_code == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("refused", [{"c001.tetris"}, RUNS])
def test_a_benchmark_with_a_run_without_any_image_fails_and_is_compared_all_the_same(bench, refused):
    result = bench(RefusingMachine(refused))
    assert result.exit_code == 1, result.output
    told = re.findall(
        r"tetriserve: (c\d+\.\w+): no request got an image.*INVALID_ARGUMENT: prompt: got \[\] \[/red\]", result.output
    )
    assert set(told) == refused
    comparison = Path("out/comparison.md").read_text()
    assert "4 problems" in comparison or "8 problems" in comparison
    assert (
        "c001.tetris: its timeline is wrong: r0: arrived 0 times; r1: arrived 0 times; r2: arrived 0 times; and 1 more"
        in comparison
    )
    assert (
        "c001.tetris: 4 requests got no image, the first since: INVALID_ARGUMENT: prompt: got [] [/red]" in comparison
    )
    assert Path("out/report.html").exists()
    assert "got [] [/red]" in result.stdout, "a note is no markup"


def _again(event, name):
    return [event, event] if event["name"] == name and event["args"]["id"].endswith("r0") else [event]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda event: [] if event.get("cat") == "decode" else [event], "r0: finished without a decode"),
        (lambda event: [] if event["name"] == "arrive" else [event], "r0: ended but never arrived"),
        (lambda event: _again(event, "arrive"), "r0: arrived 2 times"),
        (lambda event: _again(event, "finish"), "r0: ended 2 times"),
    ],
)
def test_a_benchmark_with_a_timeline_that_contradicts_itself_fails_and_is_compared(bench, change, problem):
    class OddMachine(RefusingMachine):
        def replay(self, run, url, prefix, folder):
            super().replay(run, url, prefix, folder)
            path = Path(self.running[url].settings["timeline"])
            events = read_events(path)
            if run.name == "c000.patient":
                write_timeline(path, [changed for event in events for changed in change(event)])

    result = bench(OddMachine(refused=()))
    assert result.exit_code == 1, result.output
    assert re.search(rf"tetriserve: c000\.patient: its timeline is wrong: .*{problem}", result.output)
    comparison = Path("out/comparison.md").read_text()
    assert "c000.patient: its timeline is wrong" in comparison
    assert "Without runs whose timeline is wrong: c000.patient." in comparison
    assert "| patient | " in comparison and Path("out/simulated/c001.patient.summary.json").exists()


def test_a_server_that_does_not_answer_in_time_ends_it_and_what_is_done_is_compared(bench, monkeypatch):
    def replay(self, run, url, prefix, folder):
        if run.name == "c000.patient":
            monkeypatch.setattr(Client, "status", silent)
        RefusingMachine.replay(self, run, url, prefix, folder)

    def silent(self):
        raise RequestTimeoutError("status: no answer within 30 s")

    result = bench(type("SilentMachine", (RefusingMachine,), {"replay": replay})(refused=()))
    assert result.exit_code == 1 and "tetriserve: status: no answer within 30 s" in result.output, result.output
    assert "| tetris | " in Path("out/comparison.md").read_text()
