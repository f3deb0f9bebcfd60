"""Where the latency table comes from."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.triton_adapter.table_source import TableIdentity, resolve_table
from tetriserve_profiling.conditions import Conditions

IDENTITY = TableIdentity(
    "org/model", "model-1a2b", "Some GPU 80GB", 2, "float32", 64, ((64, 64),), ((64, 64),), Conditions()
)


def make_table(identity: TableIdentity = IDENTITY, seconds: float = 0.1) -> LatencyTable:
    shape = {"height": 64, "width": 64}
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": identity.model,
            "device": identity.device,
            "world_size": identity.world_size,
            "dtype": identity.dtype,
            "text_tokens": identity.text_tokens,
            "source": "measured",
            "software": {},
            "step": [{**shape, "batch": 1, "sp": 1, "seconds": seconds}],
            "encode": [{"batch": 1, "seconds": 0.01}],
            "decode": [{**shape, "seconds": 0.01}],
            "dispatch_seconds": 0.001,
        },
        "test",
    )


class Places:
    """An asset folder, a cache and a profiler that counts."""

    def __init__(self, tmp_path: Path) -> None:
        self.assets, self.cache = tmp_path / "assets", tmp_path / "cache"
        self.measured = 0
        self.absent: list[dict[str, object]] = []

    async def measure(self) -> LatencyTable:
        self.measured += 1
        return LatencyTable.from_dict({**make_table(seconds=0.5).to_dict(), "absent": self.absent}, "measured")

    def resolve(self, identity: TableIdentity = IDENTITY, given: Path | None = None) -> LatencyTable:
        return asyncio.run(resolve_table(identity, given, self.assets, self.cache, self.measure))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def step_s(table: LatencyTable) -> float:
    return table.step_s(64, 64, 1)


def test_missing_table_is_measured_once_and_kept_as_asset_and_in_the_cache(places: Places) -> None:
    assert step_s(places.resolve()) == 0.5
    assert [path.name for path in places.assets.iterdir()] == [path.name for path in places.cache.iterdir()]
    assert step_s(places.resolve()) == 0.5
    assert places.measured == 1


@pytest.mark.parametrize(
    ("reason", "times"), [("ranks [1] are not usable", 2), ("out of memory: CUDA out of memory", 1)]
)
def test_table_without_what_only_this_time_could_not_be_measured_is_not_kept(
    places: Places, caplog: pytest.LogCaptureFixture, reason: str, times: int
) -> None:
    places.absent = [{"kind": "step", "height": 64, "width": 64, "batch": 1, "sp": 2, "cfg": 1, "reason": reason}]
    for _ in range(2):
        assert step_s(places.resolve()) == 0.5
    assert places.measured == times
    assert (reason in caplog.text) == (times > 1)


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(compile=True),
        Conditions(attention_backend="flash"),
        Conditions(threads_per_rank=2),
        Conditions(pin_ranks=True),
    ],
)
def test_table_is_for_servers_that_compute_as_it_was_measured(
    places: Places, conditions: Conditions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    raw = make_table(seconds=0.2).to_dict()
    LatencyTable.from_dict({**raw, "settings": conditions.to_dict()}, "t").save(places.assets / "a.latency.json")
    assert step_s(places.resolve(replace(IDENTITY, conditions=conditions))) == 0.2
    assert "left aside" not in caplog.text
    assert step_s(places.resolve()) == 0.5
    assert "a.latency.json: measured with other" in caplog.text and "left aside" in caplog.text
    # Named by the settings it is used, and the difference told.
    assert step_s(places.resolve(given=places.assets / "a.latency.json")) == 0.2
    assert "it is used all the same" in caplog.text


def test_tables_of_different_conditions_have_files_of_their_own_in_the_cache(places: Places) -> None:
    for number, conditions in enumerate((Conditions(), Conditions(threads_per_rank=2), Conditions(pin_ranks=True)), 1):
        identity = replace(IDENTITY, conditions=conditions)
        for _ in range(2):
            shutil.rmtree(places.assets, ignore_errors=True)
            places.resolve(identity)
        assert places.measured == number


def test_table_that_does_not_tell_how_the_model_computed_is_taken(places: Places) -> None:
    make_table(seconds=0.2).save(places.assets / "old.latency.json")
    assert step_s(places.resolve(replace(IDENTITY, conditions=Conditions(threads_per_rank=2)))) == 0.2


def test_asset_wins_over_the_cache(places: Places) -> None:
    make_table(seconds=0.2).save(places.assets / "by-hand.latency.json")
    make_table(seconds=0.3).save(places.cache / IDENTITY.file_name)
    assert step_s(places.resolve()) == 0.2


@pytest.mark.parametrize(
    ("sources", "taken_s"),
    [
        ({"a": "published", "b": "measured"}, 0.2),
        ({"a": "analytic", "b": "published"}, 0.2),
        ({"a": "analytic", "b": "analytic"}, 0.5),
    ],
)
def test_measured_table_wins_over_a_published_one_and_an_analytic_one_is_never_taken_unasked(
    places: Places, sources: dict[str, str], taken_s: float
) -> None:
    for seconds, (name, source) in zip((0.1, 0.2), sources.items(), strict=True):
        raw = {**make_table(seconds=seconds).to_dict(), "source": source}
        LatencyTable.from_dict(raw, name).save(places.assets / f"{name}.latency.json")
    assert step_s(places.resolve()) == taken_s
    assert step_s(places.resolve(given=places.assets / "a.latency.json")) == 0.1


def test_cached_table_becomes_an_asset(places: Places) -> None:
    make_table(seconds=0.3).save(places.cache / IDENTITY.file_name)
    assert step_s(places.resolve()) == 0.3
    assert step_s(LatencyTable.load(places.assets / IDENTITY.file_name)) == 0.3


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, model="org/other"),
        replace(IDENTITY, device="Another GPU"),
        replace(IDENTITY, world_size=4),
        replace(IDENTITY, dtype="bfloat16"),
        replace(IDENTITY, text_tokens=33),
    ],
)
def test_table_of_another_model_or_machine_is_not_taken(places: Places, other: TableIdentity) -> None:
    make_table(other, seconds=0.2).save(places.assets / "other.latency.json")
    assert step_s(places.resolve()) == 0.5


def test_table_that_lacks_an_asked_for_resolution_is_not_taken(places: Places) -> None:
    make_table(seconds=0.2).save(places.assets / "small.latency.json")
    places.resolve(replace(IDENTITY, asked=((64, 64), (512, 512))))
    assert places.measured == 1


def test_table_that_does_not_tell_its_text_length_is_taken(places: Places) -> None:
    raw = make_table(seconds=0.2).to_dict()
    del raw["text_tokens"]
    LatencyTable.from_dict(raw, "by hand").save(places.assets / "by-hand.latency.json")
    assert step_s(places.resolve()) == 0.2


def test_broken_table_is_left_aside(places: Places) -> None:
    places.assets.mkdir()
    (places.assets / "broken.latency.json").write_text("{")
    assert step_s(places.resolve()) == 0.5


def test_given_table_is_taken_whatever_it_was_measured_on(places: Places, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    make_table(replace(IDENTITY, device="Another GPU"), seconds=0.7).save(given)
    assert step_s(places.resolve(given=given)) == 0.7
    with pytest.raises(LatencyTableError, match="nowhere"):
        places.resolve(given=tmp_path / "nowhere.json")


def test_a_cached_table_of_other_shapes_or_of_another_build_of_the_model_is_not_taken(places: Places) -> None:
    places.resolve()
    for other in (
        replace(IDENTITY, asked=(), measured=((64, 64), (128, 128))),
        replace(IDENTITY, directory="new"),
        replace(IDENTITY, text_tokens=33),
    ):
        shutil.rmtree(places.assets)
        before = places.measured
        places.resolve(other)
        assert places.measured == before + 1
