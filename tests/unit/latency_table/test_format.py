"""A table that breaks the format is refused by file, field and expectation; a good one survives a round trip."""

import copy
import json
from pathlib import Path

import pytest

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import (
    AbsentEntry,
    DecodeEntry,
    EncodeEntry,
    MoveEntry,
    StepEntry,
    TableDocument,
)

H100 = Path(__file__).parents[3] / "model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json"
RAW = {
    "schema": "tetriserve.latency_table/1",
    "model": "m",
    "device": "d",
    "world_size": 2,
    "dtype": "float32",
    "source": "measured",
    "software": {"torch": "2"},
    "step": [
        {"height": 256, "width": 256, "batch": 1, "sp": 1, "seconds": 0.1, "cv": 0.01, "samples": 5},
        {"height": 256, "width": 256, "batch": 1, "sp": 2, "seconds": 0.07},
    ],
    "encode": [{"batch": 1, "seconds": 0.03}],
    "decode": [{"height": 256, "width": 256, "seconds": 0.005}],
    "dispatch_seconds": 0.002,
}
MOVE = {
    "height": 256, "width": 256, "from": [0], "to": [0, 1], "seconds": 0.001, "share_of_step": 0.01,
    "between_seconds": 0.002,
}  # fmt: skip
DELETE = object()


def broken(path: tuple, value: object) -> dict:
    raw = copy.deepcopy(RAW)
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        (("schema",), "tetriserve.latency_table/2", "schema", "tetriserve.latency_table/1"),
        (("schema",), DELETE, "schema", "missing"),
        (("model",), DELETE, "model", "missing"),
        (("dispatch_seconds",), DELETE, "dispatch_seconds", "missing"),
        (("source",), "guessed", "source", "'measured', 'analytic' or 'published'"),
        (("world_size",), "2", "world_size", "integer"),
        (("step",), {}, "step", "list"),
        (("step",), [], "step", "at least 1 item"),
        (("step", 1, "seconds"), DELETE, "step[1].seconds", "missing"),
        (("step", 1, "seconds"), -0.1, "step[1].seconds", "greater than 0"),
        (("step", 1, "seconds"), 0, "step[1].seconds", "greater than 0"),
        (("step", 1, "seconds"), float("nan"), "step[1].seconds", "finite number"),
        (("step", 1, "seconds"), float("inf"), "step[1].seconds", "finite number"),
        (("step", 1, "seconds"), True, "step[1].seconds", "number"),
        (("step", 1, "seconds"), "fast", "step[1].seconds", "number"),
        (("step", 0, "height"), 250, "step[0].height", "multiple of 16"),
        (("step", 0, "sp"), 0, "step[0].sp", "greater than or equal to 1"),
        (("step", 1, "sp"), 4, "step[1].sp", "at most world_size = 2"),
        (("step", 1, "sp"), 1, "step[1]", "duplicate of step[0]"),
        (("encode", 0, "batch"), 2, "encode", "at least one entry with batch = 1"),
        (("encode", 0, "seconds"), float("nan"), "encode[0].seconds", "finite number"),
        (("decode", 0, "seconds"), -1.0, "decode[0].seconds", "greater than or equal to 0"),
        (("decode", 0, "width"), 512, "decode", "resolutions of step"),
        (("hand_over",), [{"height": 256, "width": 256}], "hand_over[0].from", "missing"),
        (("absent",), [{"kind": "step"}], "absent[0].reason", "missing"),
        (("dispatch_seconds",), -1e-9, "dispatch_seconds", "greater than or equal to 0"),
        (("hand_over",), [MOVE | {"from": []}], "hand_over[0].from", "at least 1 item"),
        (("hand_over",), [MOVE | {"to": []}], "hand_over[0].to", "at least 1 item"),
        (("hand_over",), [MOVE | {"from": [0, -1]}], "hand_over[0].from[1]", "greater than or equal to 0"),
        (("hand_over",), [MOVE | {"to": [1, 2]}], "hand_over[0].to", "ranks below world_size = 2, got 2"),
        (("hand_over",), [MOVE | {"to": [1, 1]}], "hand_over[0].to", "each rank once, got [1, 1]"),
        (("hand_over",), [MOVE | {"between_seconds": -1e-9}], "hand_over[0].between_seconds", "equal to 0"),
        (("hand_over",), [MOVE, MOVE], "hand_over[1]", "duplicate of hand_over[0]"),
    ],
)
def test_error_names_file_field_and_expectation(tmp_path, path, value, field, expected):
    file = tmp_path / "bad.latency.json"
    file.write_text(json.dumps(broken(path, value)))
    with pytest.raises(LatencyTableError) as error:
        LatencyTable.load(file)
    assert str(file) in str(error.value)
    assert f" {field}: " in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_duplicate_entries_are_refused(name):
    with pytest.raises(LatencyTableError, match=rf"{name}\[1\]: duplicate of {name}\[0\]"):
        LatencyTable.from_dict(broken((name,), RAW[name] * 2), "t")


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    file = tmp_path / "bad.latency.json"
    file.write_text(text)
    with pytest.raises(LatencyTableError, match="expected"):
        LatencyTable.load(file)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(LatencyTableError, match=r"absent\.latency\.json: cannot be read"):
        LatencyTable.load(tmp_path / "absent.latency.json")


def test_unknown_keys_survive_load_and_save(tmp_path):
    raw = copy.deepcopy(RAW) | {"note": "kept", "extra": {"a": [1, None]}}
    raw["step"][0]["clock_mhz"] = 1755
    raw["encode"][0]["text_tokens"] = 512
    LatencyTable.from_dict(raw, "t").save(tmp_path / "new" / "t.latency.json")
    assert json.loads((tmp_path / "new" / "t.latency.json").read_text()) == raw
    assert LatencyTable.load(tmp_path / "new" / "t.latency.json").to_dict() == raw
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.latency.json"]


def test_the_published_table_loads_and_survives_a_round_trip():
    table = LatencyTable.load(H100)
    assert table.to_dict() == json.loads(H100.read_text())
    assert (table.world_size, table.source, table.dispatch_s) == (8, "published", 0.002)
    assert table.resolutions == ((256, 256), (512, 512), (1024, 1024), (2048, 2048))
    assert [table.fastest_degree(*shape) for shape in table.resolutions] == [1, 2, 4, 8]


def test_any_degree_may_be_profiled_not_only_powers_of_two():
    raw = broken(("world_size",), 6)
    raw["step"].append({"height": 192, "width": 256, "batch": 1, "sp": 3, "seconds": 0.05})
    raw["decode"].append({"height": 192, "width": 256, "seconds": 0.004})
    assert LatencyTable.from_dict(raw, "t").degrees(192, 256) == (3,)


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        (("dispatch_seconds",), DELETE, "add the seconds that `tetriserve profile` measures, or 0"),
        (("step", 0, "seconds"), DELETE, "add the seconds that `tetriserve profile` measures"),
        (("device",), DELETE, "add the product name of the device"),
        (("step", 1, "seconds"), -0.1, "replace it by the seconds that `tetriserve profile` measures"),
        (("decode", 0, "seconds"), -1.0, "replace it by the seconds that `tetriserve profile` measures"),
        (("schema",), "tetriserve.latency_table/2", "profile again with this version"),
        (("schema",), DELETE, 'add "tetriserve.latency_table/1"'),
        (("step", 0, "height"), 250, "replace it by pixels, a positive multiple of 16"),
        (("step", 1, "sp"), 4, "remove the entry, or correct world_size"),
        (("step", 1, "sp"), 1, "remove one of the two"),
        (("encode", 0, "batch"), 2, "measure with 1 among the --batches"),
        (("software", "torch"), 2, 'replace it by the version as text, such as "2.13.0"'),
        (("software",), "2", "replace it by an object of versions by package"),
        (("shared_counts",), {"attention heads": 0}, "replace it by a number of at least 1"),
        (("shared_counts",), 24, "replace it by an object of what each sequence-parallel degree must divide"),
        (("settings",), [], "replace it by an object of what else the times depend on"),
        (("guided",), "yes", "replace it by true where steps are those of guided requests"),
        (("absent",), [{"kind": "step"}], "add why the entry cannot be had, as text"),
        (("absent",), [{"reason": "too large"}], "add step, encode or decode"),
        (("absent",), [{"kind": "steps", "reason": "too large"}], "replace it by step, encode or decode"),
        (("hand_over",), [{}], "add pixels, a positive multiple of 16"),
        (("hand_over",), [{"height": 256, "width": 256}], "add the ranks, at least one, that had the latent before"),
        (("hand_over",), [MOVE | {"to": []}], "replace it by the ranks, at least one, that go on with the latent"),
        (("hand_over",), [MOVE | {"to": ["1"]}], "replace it by a rank, at least 0 and below world_size"),
        (("hand_over",), [MOVE | {"to": [2]}], "remove the entry, or correct world_size"),
        (("hand_over",), [MOVE | {"to": [1, 1]}], "remove the repetition"),
        (("hand_over",), [MOVE | {"share_of_step": "1 %"}], "replace it by the move's seconds over those of the step"),
        (("hand_over",), [MOVE | {"between_seconds": -1}], "replace it by the seconds between the last segment before"),
        (("step", 1), 0.07, "replace it by an object with height, width, batch, sp and seconds"),
    ],
)
def test_error_ends_with_the_fix(path, value, fix):
    with pytest.raises(LatencyTableError) as error:
        LatencyTable.from_dict(broken(path, value), "t")
    assert f"; fix: {fix}" in str(error.value)


@pytest.mark.parametrize(
    "part", [TableDocument, StepEntry, EncodeEntry, DecodeEntry, MoveEntry, AbsentEntry], ids=lambda part: part.__name__
)
def test_there_is_a_fix_for_every_field_of_the_format(part):
    wrong = {field.alias or name: object() for name, field in part.model_fields.items()}
    lists = {MoveEntry: "hand_over", AbsentEntry: "absent", StepEntry: "step", EncodeEntry: "encode"}
    for name, value in wrong.items():
        inner = lists.get(part, "decode")
        entry = {"hand_over": MOVE, "absent": {"kind": "step", "reason": "r"}}.get(inner) or RAW[inner][0]
        raw = RAW | ({name: value} if part is TableDocument else {inner: [entry | {name: value}]})
        with pytest.raises(LatencyTableError, match=rf"[ .\]]{name}: .*; fix: (replace it by|profile again) "):
            LatencyTable.from_dict(raw, "t")


def test_what_is_no_table_file_is_refused_with_a_way_out(tmp_path):
    for text in ("{", "[]", "[" * 200_000, '{"settings": ' * 200_000):
        (tmp_path / "bad.latency.json").write_text(text)
        with pytest.raises(LatencyTableError, match=r"bad\.latency\.json: expected .*; fix: .*tetriserve profile"):
            LatencyTable.load(tmp_path / "bad.latency.json")
    with pytest.raises(LatencyTableError, match=r"cannot be read: .*; fix: name a file that is there"):
        LatencyTable.load(tmp_path / "absent.latency.json")


def test_a_shape_that_the_table_lacks_is_refused_with_how_to_profile_it():
    table = LatencyTable.from_dict(RAW, "some.latency.json")
    for ask, fix in (
        (lambda: table.step_s(256, 256, 2, batch=4), "--resolutions 256x256 --degrees 1,2 --batches 1,4"),
        (lambda: table.check_resolution(512, 512), "--resolutions 256x256,512x512 --degrees 1,2 --batches 1"),
    ):
        with pytest.raises(LatencyTableError, match=r"latency table some\.latency\.json: step: ") as error:
            ask()
        command = str(error.value).partition("; fix: ")[2]
        how = "--model m --set model.dtype=float32 --world-size 2"
        assert command == f"`tetriserve profile {how} {fix} -o some.latency.json`"


def test_a_table_of_other_ranks_or_of_no_measurement_is_not_replaced_by_the_fix():
    """It would be refused there, as the two are not of the same thing."""
    published = LatencyTable.from_dict(RAW | {"source": "published", "model": "/models/my model"}, "a.latency.json")
    for table, degree, model in (
        (LatencyTable.from_dict(RAW, "a.latency.json"), 4, "m"),
        (published, 3, "'/models/my model'"),
    ):
        with pytest.raises(LatencyTableError, match=r"step: has the degrees \[1, 2\]") as error:
            table.restricted_to((degree,), 8)
        how = f"--model {model} --set model.dtype=float32 --world-size {degree}"
        what = f"--resolutions 256x256 --degrees 1,2,{degree} --batches 1"
        assert str(error.value).endswith(f"; fix: `tetriserve profile {how} {what}`")


def test_old_tables_with_encodes_of_several_prompts_still_load():
    raw = RAW | {"encode": [{"batch": 2, "seconds": 0.05}, {"batch": 1, "seconds": 0.03}]}
    table = LatencyTable.from_dict(raw, "old")
    assert table.encode_s() == 0.03 and table.to_dict() == raw
