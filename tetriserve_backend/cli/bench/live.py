"""The live side: a server per policy, every trace replayed against it by a process of its own."""

import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tetriserve_backend.cli.bench.keeping_pace import kept_pace
from tetriserve_backend.cli.bench.measuring import measure
from tetriserve_backend.cli.bench.observed import cut_out, read_events, segments_of, summarize, write_timeline
from tetriserve_backend.cli.bench.replay import read_answers
from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder
from tetriserve_backend.cli.bench.spec import BenchSpec
from tetriserve_backend.domain import ServerError
from tetriserve_backend.engine.timeline import TraceEvent
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.sweep import Variant
from tetriserve_backend.simulator.trace import TraceRequest, read_trace
from tetriserve_client import TetriserveClient
from tetriserve_client.local_server import LocalServer

_REPLAY_MODULE = "tetriserve_backend.cli.bench.replay"
_SETTLE_S, _LOOK_AGAIN_S = 2.0, 0.1
_MOST_REPEATED = 2
"""Runs that are done again in one benchmark, since their ranks could not hold their pace."""


@dataclass(frozen=True, slots=True)
class _PolicyServer:
    """A running server, and the timeline that it writes."""

    server: LocalServer
    timeline: Path


class LiveBench:
    """Serves runs on real ranks.

    Args:
        spec: what to run.
        folder: where the results go; holds the latency table and the traces.
        tell: called with what happens, in a few words.
    """

    def __init__(self, spec: BenchSpec, folder: ResultFolder, tell: Callable[[str], None]) -> None:
        self._spec, self._folder, self._tell = spec, folder, tell
        self._repeats_left = _MOST_REPEATED if spec.hold_pace is not None else 0

    def serve(self, runs: Sequence[BenchRun]) -> Generator[BenchRun, None, None]:
        """Do those of these runs that are not done; yields each when its files are written.

        With `measure_again`, tables that an interruption left out are measured too. However it ends, no server is left.

        Raises:
            ServerFailureError: a server did not start.
            ServerError: the load could not be sent, or a server ended badly.
        """
        if self._spec.take_turns:
            runs = sorted(runs, key=lambda run: run.cell)
        servers: dict[str, _PolicyServer] = {}
        with contextlib.ExitStack() as running:
            for cell, sharing in itertools.groupby(runs, key=lambda run: run.cell):
                missing = [run for run in sharing if not self._folder.is_done(run)]
                for run in missing:
                    if run.variant.name not in servers:
                        if not self._spec.take_turns:
                            servers.clear()
                            running.close()
                        servers[run.variant.name] = self._start(run.variant, running)
                    self._tell(f"{run.variant.name}, trace {run.cell_name}")
                    self._serve_one(run, servers[run.variant.name])
                    yield run
                if self._spec.measure_again and (missing or not self._folder.table_after(cell).exists()):
                    self._measure_after(cell)

    def _measure_after(self, cell: int) -> None:
        table = measure(
            self._spec.paced_server(self._folder.pace_table),
            self._spec.profile,
            lambda text: self._tell(f"measuring the latency table again: {text}"),
        )
        table.save(self._folder.table_after(cell))

    def _start(self, variant: Variant, running: contextlib.ExitStack) -> _PolicyServer:
        folder, name = self._folder.path, f"server.{variant.name}"
        timeline = folder / f"{name}.timeline.json"
        settings = self._spec.server_settings(variant, self._folder.table, self._folder.pace_table, timeline)
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._tell(f"{variant.name}, starting the server")
        options = ["--config", str(folder / f"{name}.yaml")]
        # The server itself gives up first, and says why.
        give_up_s = settings.supervisor.ready_timeout_s + _SETTLE_S
        server = LocalServer(folder / f"{name}.log", options, start_timeout_s=give_up_s)
        server.start()
        running.callback(_stop, server, variant.name)
        return _PolicyServer(server, timeline)

    def _serve_one(self, run: BenchRun, serving: _PolicyServer) -> None:
        folder = self._folder
        trace = list(read_trace(folder.trace(run)))
        events = self._serve_trace(run, serving, trace, f"{run.cell_name}-")
        while self._repeats_left and not kept_pace(segments_of(events), LatencyTable.load(folder.pace_table)):
            self._tell(f"{run.variant.name}, trace {run.cell_name}, again: its ranks could not hold their pace")
            events = self._serve_trace(run, serving, trace, f"{run.cell_name}.{self._repeats_left}-")
            self._repeats_left -= 1
        facts = TetriserveClient(serving.server.grpc_url).status()
        write_timeline(folder.timeline(run), events)
        summary = summarize(
            events,
            trace,
            read_answers(folder.answers(run)),
            policy=run.variant.name,
            gpus=int(facts["world_size"]),
            decision_ms=_numbers(facts["decision_ms"]),
            labels={**run.workload.labels(), "policy": run.variant.scheduler.policy, "where": "live"},
        )
        folder.write_summary(run, summary)

    def _serve_trace(
        self, run: BenchRun, serving: _PolicyServer, trace: Sequence[TraceRequest], prefix: str
    ) -> list[TraceEvent]:
        """Send a trace; what the server did with it. `prefix` tells these requests from all others of the server."""
        time.sleep(self._spec.pause_s)
        self._replay(run, serving.server.grpc_url, prefix)
        return cut_out(_complete(serving.timeline, trace, prefix), trace, prefix)

    def _replay(self, run: BenchRun, url: str, prefix: str) -> None:
        folder = self._folder
        command = [
            *(sys.executable, "-m", _REPLAY_MODULE, str(folder.trace(run)), str(folder.answers(run))),
            *("--url", url, "--id-prefix", prefix, "--output-format", self._spec.output_format.value),
            *("--give-up-s", str(self._spec.give_up_s)),
        ]
        # In a session of its own: Ctrl-C is for us, and we end it in our time.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, told = process.communicate()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            last = (told.strip().splitlines() or ["it does not say why"])[-1]
            raise ServerError(f"the load of {run.name} ended with status {process.returncode}: {last}")


def _stop(server: LocalServer, name: str) -> None:
    status = server.stop()
    if status != 0:
        raise ServerError(f"the server of {name} ended with status {status}; its log is beside the results")


def _complete(timeline: Path, trace: Sequence[TraceRequest], prefix: str) -> list[TraceEvent]:
    """The server's timeline once it holds the end of every request of the trace, or will not any more."""
    wanted = {prefix + request.id for request in trace}
    give_up_s = time.monotonic() + _SETTLE_S
    while True:
        events = read_events(timeline)
        ended = {event["args"]["id"] for event in events if event.get("ph") == "i" and event["name"] != "arrive"}
        if wanted <= ended or time.monotonic() > give_up_s:
            return events
        time.sleep(_LOOK_AGAIN_S)


def _numbers(facts: Any) -> dict[str, float]:
    """The entries that are known."""
    return {name: float(value) for name, value in dict(facts).items() if value is not None}
