"""A timeline file is valid JSON at every moment."""

import json
from dataclasses import replace

from tests.unit.engine.conftest import make_request
from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.timeline import TimelineFile, arrive_event, outcome_event, segment_events


def test_the_file_can_be_read_after_every_write_and_after_close(tmp_path):
    path = tmp_path / "new" / "t.timeline.json"
    timeline = TimelineFile(path)
    assert json.loads(path.read_text())["traceEvents"] == []
    for count in range(1, 4):
        timeline.write([outcome_event("finish", f"r{count}", float(count))])
        assert len(json.loads(path.read_text())["traceEvents"]) == count
    timeline.close()
    timeline.close()
    timeline.write([outcome_event("finish", "late", 9.0)])
    assert [event["args"]["id"] for event in json.loads(path.read_text())["traceEvents"]] == ["r1", "r2", "r3"]


def test_a_segment_is_one_event_per_rank_with_shared_times():
    segment = Segment(17, SegmentKind.DENOISE, (SegmentPart("r0", 5, 3),), Placement((2, 3)), 256, 512)
    first, second = segment_events(segment, 1.0, 1.25)
    assert (first["tid"], second["tid"]) == (2, 3)
    assert first["ts"] == second["ts"] == 1_000_000 and first["dur"] == second["dur"] == 250_000
    assert first["args"] == {
        "segment": 17,
        "gpus": [2, 3],
        "requests": [{"id": "r0", "first_step": 5, "steps": 3}],
        "height": 256,
        "width": 512,
    }


def test_model_is_told_where_it_has_a_name():
    segment = Segment(17, SegmentKind.DECODE, (SegmentPart("r0"),), Placement((0,)), 256, 512, model="sd3")
    request = replace(make_request(), model="sd3")
    for named in (*segment_events(segment, 1.0, 1.25), arrive_event(request, 0.0)):
        assert named["args"]["model"] == "sd3"
    for nameless in (*segment_events(replace(segment, model=""), 1.0, 1.25), arrive_event(make_request(), 0.0)):
        assert "model" not in nameless["args"]


def test_arrival_carries_the_deadline_relative_to_the_origin():
    event = arrive_event(make_request(arrival_s=101.0, slo_s=2.0), origin_s=100.0)
    assert event["ts"] == 1_000_000 and event["args"]["deadline_us"] == 3_000_000


def test_a_full_disk_ends_the_timeline_and_nothing_else(tmp_path, monkeypatch, caplog):
    path = tmp_path / "t.json"
    timeline = TimelineFile(path)
    timeline.write([outcome_event("finish", "r1", 1.0)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    timeline.write([outcome_event("finish", "r2", 2.0)])
    timeline.write([outcome_event("finish", "r3", 3.0)])
    timeline.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert len(json.loads(path.read_text())["traceEvents"]) == 1
