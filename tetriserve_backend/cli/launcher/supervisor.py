"""Keeps one server alive, and ends it without leaving anything behind."""

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from tetriserve_backend.cli.launcher.log_tail import LogTail
from tetriserve_backend.cli.launcher.plan import LaunchPlan
from tetriserve_backend.cli.launcher.probe import ProbeError, ProbeLoop, RankWatch, ServerClient
from tetriserve_backend.cli.launcher.processes import clean_up, kill_marked, remove_shared_memory
from tetriserve_backend.cli.launcher.reaper import Reaper
from tetriserve_backend.cli.launcher.restarts import RestartBudget
from tetriserve_backend.cli.launcher.server_process import TritonServer
from tetriserve_backend.cli.launcher.state_file import StateFile
from tetriserve_backend.cli.launcher.stop_request import StopRequest

_POLL_S = 0.1
_SAY_EVERY_S = 10.0
_LOG_LINES = 10
_DRAIN_ANSWER_S = 5.0


class ExitCode(IntEnum):
    """Exit status of `tetriserve serve`."""

    STOPPED = 0
    START_FAILED = 1
    WRONG_CONFIGURATION = 2
    GAVE_UP = 3
    KILLED = 130


class Supervisor:
    """Starts the server, watches it, starts it anew when part of it is dead, and stops it when asked.

    A dead stub cannot be replaced alone: clients of a decoupled model would wait for ever on the old one.
    So the whole server is started anew; the broken connections are the waiting clients' error.

    Args:
        plan: how to start the server.
        say: tells an operator what happens.
        state: a file that tells the same to programs.
    """

    def __init__(self, plan: LaunchPlan, say: Callable[[str], None], state: StateFile) -> None:
        self._plan, self._say, self._state = plan, say, state
        self._settings = plan.settings.supervisor
        self._client = ServerClient(plan.endpoints)
        self._log = LogTail(plan.log_path)
        self._reaper = Reaper(plan.run, plan.import_path)
        self._stop_request = StopRequest()

    def ask_to_stop(self) -> None:
        """Stop once the running requests are done; asked a second time, stop now. Callable from a signal handler."""
        self._stop_request.make()

    def run(self) -> ExitCode:
        """Serve until asked to stop, or until it makes no sense any more. Nothing is left when it returns."""
        try:
            self._reaper.ensure()
            return self._serve()
        finally:
            stayed = clean_up(self._plan.run)
            if stayed:
                self._say(f"these processes could not be killed: {stayed}")
            self._reaper.dismiss()
            self._state.write("stopped")
            self._say("stopped")

    def _serve(self) -> ExitCode:
        budget = RestartBudget(self._settings.max_restarts, self._settings.restart_window_s)
        was_ever_ready = False
        start_index = 0
        died_s = time.monotonic()
        while True:
            server = self._plan.make_server(start_index)
            server.start()
            phase = "restarting" if was_ever_ready else "starting"
            self._state.write(phase, server_pid=server.pid, restarts=start_index)
            failure = self._wait_ready(server)
            is_ready = failure is None and not self._stop_request.is_made
            if is_ready:
                took_s = time.monotonic() - died_s
                self._say(f"ready after {took_s:.1f} s: {self._addresses()}")
                self._state.write("ready", server_pid=server.pid, restarts=start_index)
                was_ever_ready = True
                failure = self._watch(server)
            if failure is None:
                return self._stop(server, drain=is_ready)
            died_s = time.monotonic()
            self._destroy()
            self._keep_timeline(start_index)
            delay_s = budget.take(died_s, is_ready) if was_ever_ready else None
            if delay_s is None:
                return self._give_up(failure, was_ever_ready)
            self._say(f"{failure}; starting the server anew{f' in {delay_s:.0f} s' if delay_s else ''}")
            self._stop_request.wait(delay_s)
            start_index += 1

    def _wait_ready(self, server: TritonServer) -> str | None:
        """None when the server answers or a stop was asked for, else what went wrong."""
        start_s = said_s = time.monotonic()
        while not self._stop_request.wait(_POLL_S):
            now_s = time.monotonic()
            self._pass_on_news()
            if (death := server.find_death()) is not None:
                return f"{death} before it was ready"
            if self._client.is_ready():
                try:
                    self._client.probe(self._settings.probe_timeout_s)
                except ProbeError as error:
                    if now_s - start_s > self._settings.ready_timeout_s:
                        return f"the server is loaded but does not answer: {error}"
                else:
                    server.note_stubs()
                    return None
            if now_s - start_s > self._settings.ready_timeout_s:
                return f"not ready after {self._settings.ready_timeout_s:.0f} s"
            if now_s - said_s > _SAY_EVERY_S:
                said_s = now_s
                self._say(f"starting, {now_s - start_s:.0f} s so far")
        return None

    def _watch(self, server: TritonServer) -> str | None:
        """None when a stop was asked for, else what died."""
        ranks = RankWatch(self._settings.no_rank_timeout_s)
        probes = ProbeLoop(
            lambda: ranks.check(self._client.probe(self._settings.probe_timeout_s), time.monotonic()),
            self._settings.probe_interval_s,
            self._settings.probe_failures,
        )
        probes.start()
        try:
            while not self._stop_request.wait(_POLL_S):
                self._pass_on_news()
                self._reaper.ensure()
                failure = server.find_death() or probes.unhealthy
                if failure is not None:
                    return failure
        finally:
            probes.stop()
        return None

    def _stop(self, server: TritonServer, drain: bool) -> ExitCode:
        self._state.write("stopping", server_pid=server.pid)
        if not drain:
            self._say("stopped before it was ready")
            return ExitCode.STOPPED
        timeout_s = self._plan.settings.engine.drain_timeout_s
        self._say(f"stopping: running requests have {timeout_s:g} s; once more to stop now")
        self._until_done(lambda: self._drain(timeout_s + _DRAIN_ANSWER_S))
        if not self._stop_request.is_urgent:
            server.terminate()
            ended = self._until_done(lambda: server.wait(self._settings.exit_timeout_s))
            if not ended:
                self._say("the server did not end by itself and is killed")
        return ExitCode.KILLED if self._stop_request.is_urgent else ExitCode.STOPPED

    def _drain(self, timeout_s: float) -> bool:
        try:
            self._client.drain(self._plan.control_token, timeout_s)
        except ProbeError as error:
            if not self._stop_request.is_urgent:
                self._say(f"running requests could not be waited for: {error}")
            return False
        return True

    def _until_done(self, work: Callable[[], bool]) -> bool:
        """The result of `work`, done beside; false as soon as somebody asks to stop now."""
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        thread.start()
        while thread.is_alive() and not self._stop_request.is_urgent:
            thread.join(_POLL_S)
        return bool(results and results[0])

    def _give_up(self, failure: str, was_ready: bool) -> ExitCode:
        self._pass_on_news()
        for line in self._log.last_problems(_LOG_LINES):
            self._say(f"log: {line}")
        self._say(f"{failure}; giving up")
        return ExitCode.GAVE_UP if was_ready else ExitCode.START_FAILED

    def _destroy(self) -> None:
        kill_marked(self._plan.run.run_id)
        remove_shared_memory(self._plan.run.shm_prefix)

    def _keep_timeline(self, start_index: int) -> None:
        """Move the timeline of a server that died out of the way of the next one."""
        if self._plan.settings.timeline is None:
            return
        path = Path(self._plan.settings.timeline)
        if path.exists():
            path.rename(path.with_suffix(f".{start_index}{path.suffix}"))

    def _pass_on_news(self) -> None:
        for line in self._log.news():
            self._say(line)

    def _addresses(self) -> str:
        endpoints = self._plan.endpoints
        return f"HTTP {endpoints.http_url}, gRPC {endpoints.grpc_url}, metrics {endpoints.metrics_url}"
