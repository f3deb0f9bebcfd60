"""Several images of one request: units of their own to the engine, one story for the client."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.triton_adapter.fakes import FakeEngine, FakeSender, pb_utils
from tests.unit.triton_adapter.test_denoise_server import Bench, Inline, make_spec
from tetriserve_backend.domain import RequestFailedError
from tetriserve_backend.triton_adapter.generation import Generation
from tetriserve_backend.triton_adapter.outbox import Outbox
from tetriserve_backend.triton_adapter.request_checks import load_spec
from tetriserve_backend.triton_adapter.request_spec import RENDERING_KEY
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.settings import RequestDefaults


def told(sender: FakeSender) -> list[Any]:
    return [response[2] for response, _ in sender.sent if isinstance(response, tuple)]


def test_images_are_requests_of_their_own_with_one_deadline_and_seeds_in_a_row() -> None:
    bench = Bench()
    bench.generate("a", num_images=3)
    requests = [request for request, _ in bench.engine.waiting.values()]
    assert [(request.request_id, request.seed) for request in requests] == [("a#0", 5), ("a#1", 6), ("a#2", 7)]
    assert {request.deadline_s for request in requests} == {4.0}


def test_each_image_is_sent_when_it_is_done_and_the_last_ends_the_stream() -> None:
    bench = Bench()
    sender = bench.generate("a", num_images=3)
    for index in (2, 0, 1):
        assert not sender.is_final
        bench.engine.progress(f"a#{index}", 3)
        bench.engine.finish(f"a#{index}")
    assert sender.is_final
    assert [(fact["type"], fact["image_index"]) for fact in told(sender)] == [
        ("progress", 2), ("image", 2), ("progress", 0), ("image", 0), ("progress", 1), ("image", 1),
    ]  # fmt: skip
    assert [(fact["request_id"], fact["seed"]) for fact in told(sender) if fact["type"] == "image"] == [
        ("a", 7), ("a", 5), ("a", 6),
    ]  # fmt: skip
    assert bench.call("cancel", target="a").sent[0][0][2] == {"cancelled": False}


@pytest.mark.parametrize("done", [(), ("a#1",)])
def test_cancellation_stops_every_image(done: tuple[str, ...]) -> None:
    async def scenario() -> None:
        bench = Bench()
        sender = bench.generate("a", num_images=3)
        for name in done:
            bench.engine.finish(name)
        assert bench.call("cancel", target="a#0").sent[0][0][2] == {"cancelled": False}
        assert bench.call("cancel", target="a").sent[0][0][2] == {"cancelled": True}
        await asyncio.sleep(0)
        assert (bench.engine.waiting, sender.errors, sender.is_final) == ({}, ["CANCELLED: cancelled"], True)
        assert bench.call("cancel", target="a").sent[0][0][2] == {"cancelled": False}

    asyncio.run(scenario())


def test_error_of_one_image_ends_the_request_and_stops_the_others() -> None:
    async def scenario() -> None:
        bench = Bench()
        sender = bench.generate("a", num_images=3)
        bench.engine.finish("a#2")
        bench.engine.fail("a#0", RequestFailedError("no luck"))
        # The engine is in the middle of an event: it must not be told before that is over.
        assert set(bench.engine.waiting) == {"a#1"}
        await asyncio.sleep(0)
        assert (bench.engine.waiting, sender.errors, sender.is_final) == ({}, ["INTERNAL: no luck"], True)
        assert [fact["image_index"] for fact in told(sender)] == [2]

    asyncio.run(scenario())


def test_image_that_is_done_after_the_error_is_nobodys() -> None:
    async def scenario() -> None:
        bench = Bench()
        sender = bench.generate("a", num_images=2)
        bench.engine.fail("a#0", RequestFailedError("no luck"))
        bench.engine.finish("a#1")
        await asyncio.sleep(0)
        assert sender.errors == ["INTERNAL: no luck"]

    asyncio.run(scenario())


def test_image_that_the_engine_refuses_refuses_the_request_by_its_own_id() -> None:
    async def scenario() -> None:
        bench = Bench()
        # What a cancelled request leaves for a moment: the engine still knows one of its images.
        bench.generate("a", num_images=2)
        bench.server._generations.clear()
        bench.engine.waiting.pop("a#0")
        sender = bench.generate("a", num_images=3)
        await asyncio.sleep(0)
        assert "ALREADY_EXISTS: request id: 'a' is" in sender.errors[0]
        assert "a#2" not in bench.engine.waiting

    asyncio.run(scenario())


def test_abandoned_request_is_found_once_by_its_own_id() -> None:
    bench = Bench()
    sender = bench.generate("a", num_images=2)
    assert bench.server.find_gone_clients() == []
    sender.gone = True
    assert bench.server.find_gone_clients() == ["a"]


def test_preview_travels_with_the_progress_and_how_to_render_it() -> None:
    spec = replace(load_spec(make_spec("a"), RequestDefaults(), now_s=2.0), preview=True, stream_progress=False)
    engine, sender = FakeEngine(), FakeSender()
    outbox = Outbox(lambda pixels, step, text: (pixels, step, text), Inline())
    generation = Generation(spec, SafeSender(pb_utils, sender), engine, outbox, lambda: None)
    generation.begin()
    (request, _) = engine.waiting["a"]
    assert request.preview and request.stream_progress
    engine.progress("a", 1, np.full((4, 8, 3), 9, np.uint8))
    ((pixels, step, text), _) = sender.sent[0]
    assert (pixels.shape, step, RENDERING_KEY in text) == ((4, 8, 3), 2, True)
