"""A timeline file is read back as what happened, and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tetriserve_backend.cli.drawing import draw_schedule
from tetriserve_backend.cli.timeline_view import TimelineView


def work(segment: int, gpus: list[int], kind: str, ids: list[str], start_us: int, dur_us: int) -> list[dict[str, Any]]:
    args = {"segment": segment, "gpus": gpus, "requests": [{"id": name} for name in ids], "height": 64, "width": 128}
    return [{"ph": "X", "pid": 0, "tid": g, "cat": kind, "ts": start_us, "dur": dur_us, "args": args} for g in gpus]


def arrive(name: str, at_us: int, deadline_us: int) -> dict[str, Any]:
    args = {"id": name, "deadline_us": deadline_us, "height": 64, "width": 128, "num_inference_steps": 5}
    return {"ph": "i", "pid": 1, "name": "arrive", "ts": at_us, "args": args}


def end(outcome: str, name: str, at_us: int) -> dict[str, Any]:
    return {"ph": "i", "pid": 1, "name": outcome, "ts": at_us, "args": {"id": name}}


EVENTS = [
    {"ph": "M", "pid": 0, "tid": 0, "name": "thread_name", "args": {"name": "GPU 0"}},
    arrive("late", 2_000_000, 2_500_000),
    arrive("prompt", 1_000_000, 5_000_000),
    arrive("open", 3_000_000, 6_000_000),
    *work(1, [0], "encode", ["prompt"], 1_000_000, 10_000),
    *work(2, [0, 1], "denoise", ["prompt", "late"], 2_000_000, 500_000),
    *work(3, [1], "decode", ["late"], 2_600_000, 100_000),
    end("finish", "prompt", 2_600_000),
    end("finish", "late", 2_700_000),
]


def test_requests_come_in_order_of_arrival_with_their_ends() -> None:
    view = TimelineView.from_events(EVENTS)
    assert [request.request_id for request in view.requests] == ["prompt", "late", "open"]
    assert [request.on_time for request in view.requests] == [True, False, False]
    assert [request.outcome for request in view.requests] == ["finish", "finish", None]


def test_cancelled_request_is_not_on_time() -> None:
    view = TimelineView.from_events([arrive("r", 0, 9), end("cancel", "r", 1)])
    assert not view.requests[0].on_time


def test_work_of_a_group_appears_on_each_gpu() -> None:
    view = TimelineView.from_events(EVENTS)
    shared = [span for span in view.work if span.kind == "denoise"]
    assert [(span.gpu, span.sp_degree, span.request_ids) for span in shared] == [
        (0, 2, ("prompt", "late")),
        (1, 2, ("prompt", "late")),
    ]
    assert view.gpus == (0, 1)
    assert (view.start_s, view.end_s) == (1.0, 6.0)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"traceEvents": [{"ph": "X"}]}'])
def test_file_that_is_no_timeline_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.timeline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.timeline\.json"):
        TimelineView.load(path)


@pytest.mark.parametrize("events", [EVENTS, []])
def test_picture_is_drawn_from_a_file(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    source, picture = tmp_path / "t.timeline.json", tmp_path / "t.png"
    source.write_text(json.dumps({"traceEvents": events}))
    draw_schedule(TimelineView.load(source), picture, title="two GPUs")
    with Image.open(picture) as image:
        image.load()
        assert image.format == "PNG"


def test_each_request_keeps_its_colour_on_every_gpu(tmp_path: Path) -> None:
    # One request on both GPUs at full height: the picture shows one strong colour beside greys only.
    events = [arrive("r", 0, 1_000_000), *work(1, [0, 1], "denoise", ["r"], 0, 1_000_000), end("finish", "r", 990_000)]
    picture = tmp_path / "t.png"
    draw_schedule(TimelineView.from_events(events), picture, title="")
    with Image.open(picture) as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colors is not None
    strong = sorted((count, rgb) for count, rgb in colors if max(rgb) - min(rgb) > 60)
    assert strong[-1][0] > 10 * sum(count for count, rgb in strong[:-1] if rgb != strong[-1][1]) / max(1, len(strong))
