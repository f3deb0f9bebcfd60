"""Messages survive the wire as they were, and nothing else passes for one."""

import math
from dataclasses import replace

import pytest
import zmq

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.executor import wire
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.worker_spec import ModelSpec

REQUEST = Request("r0", 256, 512, 20, arrival_s=1.25, deadline_s=2.5, prompt='ein „Fuchs" 🦊\n', seed=2**62)
COMMAND = RunSegment(
    Segment(7, SegmentKind.DENOISE, (SegmentPart("r0", 5, 5),), Placement((2, 3)), 256, 512),
    (REQUEST,),
    (HandOver(Source(SourceKind.RESIDENT), Source(SourceKind.HOST, 2)),),
)
FACTS = ModelFacts(141, 64, {"attention heads": 8}, supports_negative_prompt=True, default_guidance_scale=7.0)
HEADER = wire.TensorHeader("r0", "latent", "float32", (1, 2), step=5)

MESSAGES: list[wire.Message] = [
    wire.FormWorld(3),
    wire.HealGroup((0, 1), 2),
    wire.Perform(COMMAND, ()),
    wire.Forget("r0"),
    wire.LoadModel(ModelSpec("sd3", "/models/sd3", ModelSettings(path="demo-sd3"), "float32")),
    wire.UnloadModel("sd3"),
    wire.Stop(),
    wire.Loaded(wire.RankInfo("a CPU", {"torch": "2"}), {"sd3": FACTS}),
    wire.ModelLoaded("sd3", FACTS),
    wire.ModelFailed("sd3", "no"),
    wire.ModelUnloaded("sd3"),
    wire.StartFailed("no"),
    wire.WorldReady(3),
    wire.GroupHealed((0, 1)),
    wire.StepDone("r0", 4),
    wire.PartDone(7, 1.0, 2.0, ()),
    wire.PartFailed(7, "no", "group", True),
]


def over_the_wire(
    message: wire.Message, tensors: tuple[wire.HostTensor, ...] = ()
) -> tuple[wire.Message, tuple[wire.HostTensor, ...]]:
    return wire.decode([zmq.Frame(frame) for frame in wire.encode(message, tensors)])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_every_message_arrives_as_it_was_sent(message: wire.Message) -> None:
    assert over_the_wire(message) == (message, ())


@pytest.mark.parametrize("message", [wire.PartDone(7, 1.0, 2.0, (HEADER,)), wire.StepDone("r0", 4, (HEADER,))])
def test_tensor_frames_arrive_beside_their_headers(message: wire.Message) -> None:
    sent = wire.HostTensor(HEADER, memoryview(b"12345678"))
    arrived, (received,) = over_the_wire(message, (sent,))
    assert arrived == message
    assert received.header == HEADER
    assert bytes(received.data) == b"12345678"


def test_request_without_a_deadline_can_be_sent() -> None:
    endless = replace(COMMAND, requests=(replace(REQUEST, deadline_s=math.inf),))
    assert over_the_wire(wire.Perform(endless, ()))[0] == wire.Perform(endless, ())


@pytest.mark.parametrize(
    "frames",
    [
        [b"not json"],
        [b'{"kind": "unheard_of"}'],
        [b'{"kind": "forget"}'],
        [b'{"kind": "stop"}', b"a frame too many"],
        [wire.encode(wire.PartDone(7, 1.0, 2.0, (HEADER,)))[0]],
    ],
)
def test_anything_else_is_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(wire.WireError):
        wire.decode([zmq.Frame(frame) for frame in frames])


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_segment_that_does_not_follow_the_rules_is_told_by_its_id() -> None:
    half_a_step = replace(COMMAND, requests=(replace(REQUEST, num_steps=2.5),))  # type: ignore[arg-type]
    with pytest.raises(wire.WireError) as caught:
        over_the_wire(wire.Perform(half_a_step, ()))
    assert caught.value.segment_id == 7


def test_text_that_is_no_unicode_is_refused_by_the_sender() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        wire.encode(wire.Perform(replace(COMMAND, requests=(replace(REQUEST, prompt="\ud800"),)), ()))
