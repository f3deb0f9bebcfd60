"""Traces are read and written as a stream, and a broken one is named by file, line and field."""

import itertools
import json

import pytest

from tetriserve_backend.simulator.trace import TraceError, TraceRequest, read_trace, write_trace

LINE = {"id": "r0", "arrival_s": 0.5, "height": 256, "width": 512, "num_inference_steps": 20, "slo_s": 3.0}


def written(tmp_path, *lines):
    path = tmp_path / "t.trace.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_what_is_written_is_read_back(tmp_path):
    requests = [
        TraceRequest(**LINE),
        TraceRequest(**{**LINE, "id": "r1", "arrival_s": 0.7, "prompt": "a fox", "seed": 7, "priority": 1}),
    ]
    assert write_trace(tmp_path / "deep" / "t.trace.jsonl", requests) == 2
    assert list(read_trace(tmp_path / "deep" / "t.trace.jsonl")) == requests


def test_the_deadline_is_arrival_plus_slo():
    request = TraceRequest(**LINE).to_request()
    assert (request.request_id, request.height, request.width, request.num_steps) == ("r0", 256, 512, 20)
    assert request.deadline_s == 3.5 and request.slo_s == 3.0


def test_numbers_as_ids_blank_lines_and_unknown_keys_are_fine(tmp_path):
    path = written(tmp_path, {**LINE, "id": 7, "note": "x"}, "", {**LINE, "arrival_s": 1})
    assert [request.id for request in read_trace(path)] == ["7", "r0"]


def test_only_as_many_lines_are_read_as_are_asked_for(tmp_path):
    path = written(tmp_path, LINE, "broken")
    assert len(list(itertools.islice(read_trace(path), 1))) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slo_s": 0}, "slo_s"),
        ({"height": "tall"}, "height"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"arrival_s": 0.1}, "arrival_s"),
        ({"arrival_s": float("nan")}, "arrival_s"),
        ({"id": ""}, "id"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, field):
    path = written(tmp_path, LINE, {**LINE, "id": "r1", **change})
    with pytest.raises(TraceError, match=rf"t\.trace\.jsonl:2: .*{field}"):
        list(read_trace(path))


def test_a_missing_field_a_line_that_is_no_json_and_a_missing_file_are_named(tmp_path):
    without = {key: value for key, value in LINE.items() if key != "width"}
    for line, message in ((without, ":1: width"), ("nonsense", ":1: line")):
        with pytest.raises(TraceError, match=message):
            list(read_trace(written(tmp_path, line)))
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_trace(tmp_path / "none"))
