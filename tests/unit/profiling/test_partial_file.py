"""A profile on disk: taken up only by the same profile."""

import json
from dataclasses import replace

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table.work import step_work
from tetriserve_profiling.partial_file import PartialFile, partial_path
from tetriserve_profiling.record import Identity, Record
from tetriserve_profiling.stopwatch import Samples

IDENTITY = Identity(
    "org/model", "model-1a2b", "Some GPU", 2, "float32", 64, {"torch": "2"}, {"profile": {"repeats": 5}, "threads": 1}
)
WORK = step_work(256, 256)


@pytest.fixture
def table(tmp_path):
    return tmp_path / "new" / "a.latency.json"


def some_record():
    record = Record()
    record.add(WORK, Samples((0.1, 0.3), (0.001,), 4096))
    record.give_up(step_work(256, 256, 2), "out of memory: x")
    return record


def test_without_a_file_there_is_nothing_yet(table):
    assert PartialFile(table, IDENTITY).load().counts() == {}


def test_what_was_saved_is_taken_up(table):
    PartialFile(table, IDENTITY).save(some_record())
    record = PartialFile(table, IDENTITY).load()
    assert record.to_dict() == some_record().to_dict()
    assert record.counts() == {WORK: 2}
    assert record.spread(WORK).seconds == pytest.approx(0.2)
    assert [path.name for path in table.parent.iterdir()] == ["a.latency.json.partial"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": "Another GPU"}, "device ('Some GPU' then, 'Another GPU' now)"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"model": "org/other"}, "model"),
        ({"build": "model-3c4d"}, "build"),
        ({"world_size": 4}, "world_size"),
        ({"software": {"torch": "3"}}, "software.torch ('2' then, '3' now)"),
        ({"settings": {"profile": {"repeats": 6}, "threads": 1}}, "settings.profile.repeats (5 then, 6 now)"),
    ],
)
def test_samples_of_another_profile_are_refused(table, change, named):
    PartialFile(table, IDENTITY).save(some_record())
    with pytest.raises(ConfigurationError) as error:
        PartialFile(table, replace(IDENTITY, **change)).load()
    assert named in str(error.value)
    assert "--fresh" in str(error.value) and str(partial_path(table)) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"schema": "tetriserve.latency_profile/2"})])
def test_a_broken_file_is_refused(table, text):
    table.parent.mkdir()
    partial_path(table).write_text(text)
    with pytest.raises(ConfigurationError, match=r"cannot be taken up.*--fresh"):
        PartialFile(table, IDENTITY).load()


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"profile .*/file/a\.latency\.json\.partial: cannot be written: .*--out"
    ):
        PartialFile(tmp_path / "file" / "a.latency.json", IDENTITY).save(some_record())


def test_a_removed_file_leaves_nothing(table):
    partial = PartialFile(table, IDENTITY)
    partial.save(some_record())
    partial.remove()
    partial.remove()
    assert list(table.parent.iterdir()) == []
