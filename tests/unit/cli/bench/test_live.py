"""Servers take turns on each trace, disturbed runs are done again, and no server is left, whatever happens."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench import live
from tetriserve_backend.cli.bench.live import LiveBench
from tetriserve_backend.cli.bench.observed import read_events, write_timeline
from tetriserve_backend.cli.bench.results import ResultFolder, runs_of
from tetriserve_backend.cli.bench.spec import BenchSpec
from tetriserve_backend.domain import ServerError
from tetriserve_backend.engine.timeline import TimelineRecorder
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.trace import read_trace, write_trace
from tetriserve_backend.simulator.workload import generate

TABLE = small_table(dispatch_s=0.001)
SPEC = {
    "grid": {
        "policies": ["tetris", {"name": "patient", "scheduler": {"policy": "tetris"}, "engine": {"lead_s": 0.5}}],
        "mixes": [{"256x256": 1, "512x512": 1}],
        "slo_scales": [2.0],
        "rates_per_minute": [60],
        "seeds": [1, 2],
        "workload": {"requests": 4, "min_steps": 4, "max_steps": 4, "prompts": ["a red fox"]},
    },
    "take_turns": True,
    "hold_pace": 1.0,
    "pause_s": 0,
}
NAMES = ("tetris", "patient")
MINUTE_S = 60.0


class Machine:
    """Stands for the servers and their load: each trace is served in virtual time, so many times as slow as is told."""

    def __init__(self, slowness=()):
        self.slowness, self.running, self.served, self.timeouts_s = list(slowness), {}, [], []
        self.statuses = Counter()

    def server(self, log, options, *, start_timeout_s):
        settings = json.loads(Path(options[1]).read_text())
        self.timeouts_s.append(start_timeout_s)
        return Server(self, settings)

    def replay(self, run, url, prefix, folder):
        server = self.running[url]
        trace = list(read_trace(folder.trace(run)))
        begin_s = MINUTE_S * len(self.served)
        self.served.append(f"{run.name} {prefix}")
        requests = [r.model_copy(update={"id": prefix + r.id, "arrival_s": begin_s + r.arrival_s}) for r in trace]
        timeline = TimelineRecorder()
        slowness = self.slowness.pop(0) if self.slowness else 1.0
        settings = SimulationSettings(4, SchedulerSettings(policy="tetris"), slowdown=slowness)
        simulate(TABLE, [request.to_request() for request in requests], settings, timeline=timeline)
        path = Path(server.settings["timeline"])
        write_timeline(path, [*(read_events(path) if path.exists() else []), *timeline.events])
        folder.answers(run).write_text("")


class Server:
    """One of the machine's; its address is its policy's timeline."""

    def __init__(self, machine, settings):
        self.machine, self.settings, self.grpc_url = machine, settings, settings["timeline"]

    def start(self):
        self.machine.running[self.grpc_url] = self
        Path(self.grpc_url).unlink(missing_ok=True)

    def stop(self):
        del self.machine.running[self.grpc_url]
        return self.machine.statuses[self.grpc_url]


class Client:
    def __init__(self, url):
        pass

    def status(self):
        return {"world_size": 4, "decision_ms": {"p50": 0.5, "p99": 0.9, "max": None}}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A benchmark of a `Machine`, its runs, and the machine."""

    def make(slowness=(), **changes):
        spec, folder, machine = BenchSpec.model_validate({**SPEC, **changes}), ResultFolder(tmp_path), Machine(slowness)
        TABLE.save(folder.table)
        TABLE.save(folder.pace_table)
        runs = list(runs_of(spec.grid))
        for run in runs:
            write_trace(folder.trace(run), generate(run.workload))
        monkeypatch.setattr(live, "LocalServer", machine.server)
        monkeypatch.setattr(live, "TetriserveClient", Client)
        monkeypatch.setattr(
            LiveBench, "_replay", lambda self, run, url, prefix: machine.replay(run, url, prefix, folder)
        )
        return LiveBench(spec, folder, lambda text: None), runs, machine, folder

    return make


def test_servers_that_take_turns_get_each_trace_one_after_the_other(bench):
    benchmark, runs, machine, folder = bench()
    done = [run.name for run in benchmark.serve(runs)]
    assert done == ["c000.tetris", "c000.patient", "c001.tetris", "c001.patient"]
    assert machine.running == {} and len(machine.timeouts_s) == 2
    assert all(folder.is_done(run) for run in runs)
    assert folder.read_summary(runs[0]).decision_ms == {"p50": 0.5, "p99": 0.9}


def test_a_policy_with_an_engine_of_its_own_is_served_with_it(bench):
    benchmark, runs, _, folder = bench()
    list(benchmark.serve(runs))
    leads_s = [json.loads((folder.path / f"server.{name}.yaml").read_text())["engine"]["lead_s"] for name in NAMES]
    assert leads_s[0] != leads_s[1] == 0.5


def test_a_server_may_take_as_long_to_start_as_it_gives_itself(bench):
    benchmark, runs, machine, _ = bench(server={"supervisor": {"ready_timeout_s": 700}})
    list(benchmark.serve(runs))
    assert min(machine.timeouts_s) > 700


def test_a_run_whose_ranks_fell_behind_their_pace_is_done_again_under_other_ids(bench):
    benchmark, runs, machine, folder = bench(slowness=[1.0, 1.5, 1.0])
    list(benchmark.serve(runs))
    assert machine.served[:4] == [
        "c000.tetris c000-", "c000.patient c000-", "c000.patient c000.2-", "c001.tetris c001-",
    ]  # fmt: skip
    patient = next(run for run in runs if run.name == "c000.patient")
    assert folder.read_summary(patient).outcomes == {"finish": 4}
    assert min(e["ts"] for e in read_events(folder.timeline(patient)) if e["name"] == "arrive") < MINUTE_S * 1e6


def test_two_runs_are_done_again_at_most(bench):
    benchmark, runs, machine, _ = bench(slowness=[1.5] * 9)
    list(benchmark.serve(runs))
    assert len(machine.served) == len(runs) + 2


def test_without_a_held_pace_no_run_is_done_again(bench):
    benchmark, runs, machine, _ = bench(slowness=[1.5] * 9, hold_pace=None)
    list(benchmark.serve(runs))
    assert len(machine.served) == len(runs)


def test_a_table_is_measured_after_each_trace_where_that_is_asked_for(bench, monkeypatch):
    measured = []
    monkeypatch.setattr(live, "measure", lambda server, profile, tell: measured.append(profile) or TABLE)
    benchmark, runs, _, folder = bench(measure_again=True, hold_pace=None)
    list(benchmark.serve(runs))
    assert len(measured) == 2 and folder.table_after(0).exists() and folder.table_after(1).exists()


def test_a_table_that_an_interruption_left_out_is_measured_when_it_goes_on(bench, monkeypatch):
    measured = []

    def measure(server, profile, tell):
        if not measured:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(machine.served[-1:])
        return TABLE

    monkeypatch.setattr(live, "measure", measure)
    benchmark, runs, machine, folder = bench(measure_again=True, hold_pace=None)
    with pytest.raises(KeyboardInterrupt):
        list(benchmark.serve(runs))
    assert not folder.table_after(0).exists() and machine.running == {}
    done = [run.name for run in benchmark.serve(runs)]
    assert done == ["c001.tetris", "c001.patient"]
    assert measured[1:] == [["c000.patient c000-"], ["c001.patient c001-"]]
    assert folder.table_after(0).exists() and folder.table_after(1).exists()
    assert list(benchmark.serve(runs)) == [] and len(measured) == 3


def test_a_load_that_finds_no_server_is_one_line_with_the_cause(bench, monkeypatch, capfd):
    send = LiveBench._replay
    benchmark, runs, machine, _ = bench()
    monkeypatch.setattr(LiveBench, "_replay", lambda self, run, url, prefix: send(self, run, "127.0.0.1:9", prefix))
    told = r"^the load of c000\.tetris ended with status 1: .*127\.0\.0\.1:9.*$"
    with pytest.raises(ServerError, match=told) as failed:
        list(benchmark.serve(runs))
    assert "\n" not in str(failed.value) and "Traceback" not in "".join(capfd.readouterr())
    assert machine.running == {}


def test_whoever_stops_listening_leaves_no_server_behind(bench):
    benchmark, runs, machine, folder = bench()
    serving = benchmark.serve(runs)
    next(serving)
    assert machine.running
    serving.close()
    assert machine.running == {} and [folder.is_done(run) for run in runs].count(True) == 1


def test_a_server_that_ends_badly_is_an_error_with_its_name(bench):
    benchmark, runs, machine, folder = bench()
    machine.statuses[str(folder.path / "server.patient.timeline.json")] = 1
    with pytest.raises(ServerError, match="the server of patient ended with status 1"):
        list(benchmark.serve(runs))
    assert machine.running == {}
