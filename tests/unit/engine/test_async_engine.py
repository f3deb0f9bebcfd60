"""The asyncio shell answers every request exactly once, whatever the executor does."""

import asyncio
import json
import time

import numpy as np
import pytest

from tests.unit.engine.conftest import make_request
from tetriserve_backend.domain import (
    DuplicateRequestError,
    InvalidRequestError,
    RequestCancelledError,
    SegmentKind,
    ServerError,
    UnavailableError,
)
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.executor_port import StepProgress
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy

PREVIEW = np.zeros((4, 4, 3), np.uint8)


class InstantExecutor:
    """Performs each segment at once, or holds it back while `hold` is set."""

    def __init__(self):
        self.queue: asyncio.Queue = asyncio.Queue()
        self.hold = False
        self.held = []
        self.released = []
        self.closed = False

    async def start(self):
        pass

    def run_segment(self, command):
        if self.hold:
            self.held.append(command)
            return
        now_s = time.monotonic()
        segment = command.segment
        if segment.kind is SegmentKind.DENOISE and command.requests[0].stream_progress:
            for step in range(segment.parts[0].first_step, segment.parts[0].first_step + segment.num_steps):
                preview = PREVIEW if command.requests[0].preview else None
                self.queue.put_nowait(StepProgress(segment.parts[0].request_id, step, preview))
        self.queue.put_nowait(ev.SegmentFinished(segment.segment_id, now_s, now_s + 1e-4))

    def release(self, request_id):
        self.released.append(request_id)

    def reform_world(self):
        self.queue.put_nowait(ev.WorldFormed((0, 1, 2, 3)))

    def take_image(self, request_id):
        return np.zeros((256, 256, 3), np.uint8)

    async def next_event(self):
        event = await self.queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def shutdown(self):
        self.closed = True


class Collector:
    def __init__(self):
        self.steps, self.previews, self.answers, self.errors, self.done = [], [], [], [], asyncio.Event()

    def on_progress(self, request, step_index, preview):
        self.steps.append(step_index)
        self.previews.append(preview)

    def on_finish(self, answer):
        self.answers.append(answer)
        self.done.set()

    def on_error(self, request, error):
        self.errors.append(error)
        self.done.set()


def now_request(request_id="r0", **changes):
    request = make_request(request_id, arrival_s=time.monotonic())
    return type(request)(**{**{f: getattr(request, f) for f in request.__slots__}, **changes})


@pytest.fixture
def serve(table, tmp_path):
    """Run a test coroutine against an engine; what it leaves behind is checked at the end."""

    def run(scenario, policy_name="fixed-sp2"):
        async def main():
            tables = LatencyTables({"": table})
            policy = make_policy(SchedulerSettings(policy=policy_name), tables, 4)
            core = EngineCore(policy, tables, 4, EngineSettings())
            executor = InstantExecutor()
            engine = AsyncEngine(core, executor, TimelineFile(tmp_path / "t.json"))
            await engine.start()
            try:
                await asyncio.wait_for(scenario(engine, executor), 10)
            finally:
                await engine.shutdown()
            assert executor.closed
            return json.loads((tmp_path / "t.json").read_text())["traceEvents"]

        return asyncio.run(main())

    return run


def test_an_image_arrives_with_its_progress_and_timeline(serve):
    async def scenario(engine, executor):
        listener = Collector()
        engine.submit(now_request(stream_progress=True), listener)
        await listener.done.wait()
        assert listener.steps == [0, 1, 2, 3, 4] and len(listener.answers) == 1 and not listener.errors
        assert listener.previews == [None] * 5
        assert listener.answers[0].segments[0].kind == "encode"
        assert executor.released == ["r0"]
        assert engine.status()["state"] == "serving" and engine.status()["pending"] == 0

    events = serve(scenario)
    names = [event["name"] for event in events if event["ph"] == "i"]
    assert names == ["arrive", "finish"]
    assert {event["cat"] for event in events if event["ph"] == "X"} == {"encode", "denoise", "decode"}


def test_previews_come_with_the_progress_of_who_asked_for_them(serve):
    async def scenario(engine, executor):
        listener = Collector()
        engine.submit(now_request(stream_progress=True, preview=True), listener)
        await listener.done.wait()
        assert [preview is PREVIEW for preview in listener.previews] == [True] * 5

    serve(scenario)


def test_a_second_request_of_the_same_id_is_refused_and_the_first_goes_on(serve):
    async def scenario(engine, executor):
        first, second = Collector(), Collector()
        executor.hold = True
        engine.submit(now_request(), first)
        engine.submit(now_request(), second)
        assert isinstance(second.errors[0], DuplicateRequestError) and not first.errors
        assert engine.cancel("r0") and isinstance(first.errors[0], RequestCancelledError)
        assert not engine.cancel("r0")

    serve(scenario)


def test_draining_waits_for_running_requests_and_refuses_new_ones(serve):
    async def scenario(engine, executor):
        running, late = Collector(), Collector()
        engine.submit(now_request("a"), running)
        drain = asyncio.create_task(engine.drain(5.0))
        await asyncio.sleep(0)
        engine.submit(now_request("b"), late)
        await drain
        assert len(running.answers) == 1 and isinstance(late.errors[0], UnavailableError)
        assert engine.status()["state"] == "draining"

    serve(scenario)


def test_draining_fails_what_is_not_done_in_time(serve):
    async def scenario(engine, executor):
        executor.hold = True
        listener = Collector()
        engine.submit(now_request(), listener)
        await engine.drain(0.05)
        assert isinstance(listener.errors[0], UnavailableError)

    serve(scenario)


@pytest.mark.parametrize("error", [ServerError("no rank can be started"), ValueError("a bug")])
def test_when_the_executor_breaks_everyone_gets_an_error(serve, error):
    async def scenario(engine, executor):
        executor.hold = True
        waiting, late = Collector(), Collector()
        engine.submit(now_request("a"), waiting)
        executor.queue.put_nowait(error)
        await waiting.done.wait()
        engine.submit(now_request("b"), late)
        assert isinstance(waiting.errors[0], UnavailableError) and isinstance(late.errors[0], UnavailableError)
        assert engine.status()["state"] == "failed"

    events = serve(scenario)
    assert [event["name"] for event in events if event["ph"] == "i"] == ["arrive", "fail"]


def test_shutdown_answers_whoever_still_waits(serve):
    listener = None

    async def scenario(engine, executor):
        nonlocal listener
        listener = Collector()
        executor.hold = True
        engine.submit(now_request(), listener)

    serve(scenario)
    assert isinstance(listener.errors[0], UnavailableError)


def test_a_lost_rank_is_healed_while_requests_go_on(serve):
    async def scenario(engine, executor):
        executor.queue.put_nowait(ev.WorkerLost(3, "killed"))
        executor.queue.put_nowait(ev.WorkerReady(3))
        listener = Collector()
        await asyncio.sleep(0.05)
        engine.submit(now_request(), listener)
        await listener.done.wait()
        assert listener.answers and engine.status()["ranks"] == [0, 1, 2, 3]

    serve(scenario)


def test_nothing_runs_while_the_engine_is_at_rest_and_what_came_meanwhile_is_served_after(serve):
    async def scenario(engine, executor):
        executor.hold = True
        before, meanwhile = Collector(), Collector()
        engine.submit(now_request("before"), before)
        running, executor.held = executor.held, []

        async def rest():
            async with engine.at_rest() as next_event:
                assert not executor.held
                executor.hold = False
                engine.submit(now_request("meanwhile"), meanwhile)
                # The guest has the ranks: what they tell is for it.
                executor.queue.put_nowait(ev.WorkerLost(3, "killed"))
                assert await next_event() == ev.WorkerLost(3, "killed")
                await asyncio.sleep(0.05)
                assert engine.status()["running"] == 0 and engine.status()["ranks"] == [0, 1, 2, 3]

        resting = asyncio.create_task(rest())
        await asyncio.sleep(0.05)
        assert not resting.done() and not executor.held
        now_s = time.monotonic()
        for command in running:
            executor.queue.put_nowait(ev.SegmentFinished(command.segment.segment_id, now_s, now_s + 1e-4))
        await resting
        assert engine.status()["ranks"] == [0, 1, 2]
        await before.done.wait()
        await meanwhile.done.wait()
        assert before.answers and meanwhile.answers

    serve(scenario)


def test_rest_is_not_granted_before_a_lost_rank_is_back(serve):
    async def scenario(engine, executor):
        executor.queue.put_nowait(ev.WorkerLost(3, "killed"))
        await asyncio.sleep(0.05)

        async def rest():
            async with engine.at_rest():
                assert engine.status()["ranks"] == [0, 1, 2, 3]

        resting = asyncio.create_task(rest())
        await asyncio.sleep(0.05)
        engine.submit(now_request(), listener := Collector())
        await listener.done.wait()
        assert listener.answers and not resting.done()
        executor.queue.put_nowait(ev.WorkerReady(3))
        await asyncio.wait_for(resting, 5.0)

    serve(scenario)


def test_rank_that_never_comes_back_does_not_hold_up_a_rest_for_ever(serve):
    async def scenario(engine, executor):
        executor.queue.put_nowait(ev.WorkerLost(3, "killed"))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.05, executor.queue.put_nowait, ServerError("rank 3 is given up"))
        with pytest.raises(UnavailableError, match="given up"):
            async with engine.at_rest():
                pass

    serve(scenario)


def test_ranks_that_break_in_a_guests_hands_fail_the_engine(serve):
    async def scenario(engine, executor):
        waiting = Collector()
        with pytest.raises(ServerError, match="no rank"):
            async with engine.at_rest() as next_event:
                engine.submit(now_request(), waiting)
                executor.queue.put_nowait(ServerError("no rank can be started"))
                await next_event()
        assert isinstance(waiting.errors[0], UnavailableError)
        assert engine.status()["state"] == "failed"
        with pytest.raises(UnavailableError):
            async with engine.at_rest():
                pass

    serve(scenario)


def test_a_model_that_leaves_finishes_what_runs_and_takes_nothing_new(serve, table):
    async def scenario(engine, executor):
        engine.add_model("other", table)
        executor.hold = True
        running, late, spared = Collector(), Collector(), Collector()
        engine.submit(now_request("running", model="other"), running)
        removing = asyncio.create_task(engine.remove_model("other", timeout_s=5.0))
        await asyncio.sleep(0)
        engine.submit(now_request("late", model="other"), late)
        assert isinstance(late.errors[0], UnavailableError) and not removing.done()
        executor.hold = False
        for command in executor.held:
            executor.run_segment(command)
        await removing
        assert running.answers
        engine.submit(now_request("spared", model=""), spared)
        await spared.done.wait()
        assert spared.answers
        engine.submit(now_request("gone", model="other"), gone := Collector())
        assert isinstance(gone.errors[0], InvalidRequestError)

    serve(scenario)


def test_requests_of_a_model_that_leaves_are_not_waited_for_for_ever(serve, table):
    async def scenario(engine, executor):
        engine.add_model("other", table)
        executor.hold = True
        engine.submit(now_request("stuck", model="other"), stuck := Collector())
        await engine.remove_model("other", timeout_s=0.05)
        assert isinstance(stuck.errors[0], UnavailableError)
        # Its segment ends after all.
        executor.hold = False
        for command in executor.held:
            executor.run_segment(command)
        engine.submit(now_request("next", model=""), listener := Collector())
        await listener.done.wait()
        assert listener.answers and engine.status()["state"] == "serving"

    serve(scenario)
