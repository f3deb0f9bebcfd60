"""Guidance may be split over the ranks where the table says that this is faster."""

import pytest

from tests.unit.latency_table.test_format import H100
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable


def table_with(*splits: dict[str, object]) -> LatencyTable:
    raw = LatencyTable.load(H100).to_dict()
    raw["step"] += splits
    return LatencyTable.from_dict(raw, "t")


def entry(side: int, sp: int, seconds: float) -> dict[str, object]:
    return {"height": side, "width": side, "batch": 1, "sp": sp, "cfg": 2, "seconds": seconds}


def test_the_faster_of_two_splits_counts():
    plain = LatencyTable.load(H100)
    table = table_with(entry(1024, 1, 0.001), entry(2048, 1, 99.0))
    assert table.step_s(1024, 1024, 2) == 0.001
    assert table.cfg_degree(1024, 1024, 2) == 2
    assert table.step_s(2048, 2048, 2) == plain.step_s(2048, 2048, 2)
    assert table.cfg_degree(2048, 2048, 2) == 1
    assert plain.cfg_degree(1024, 1024, 2) == 1


def test_between_profiled_shapes_the_split_is_that_of_the_faster_line():
    table = table_with(entry(1024, 1, 0.001), entry(2048, 1, 0.002))
    assert table.cfg_degree(1024, 2048, 2) == 2
    assert 0.001 < table.step_s(1024, 2048, 2) < 0.002


def test_a_table_tells_whether_its_steps_are_guided_or_shows_it_by_splits():
    assert not LatencyTable.load(H100).is_guided
    assert table_with(entry(1024, 1, 0.001)).is_guided
    assert LatencyTable.from_dict({**LatencyTable.load(H100).to_dict(), "guided": True}, "t").is_guided


def test_a_split_must_fit_into_the_world():
    with pytest.raises(LatencyTableError, match=r"step\[\d+\].sp: expected sp × cfg of at most world_size = 8, got 16"):
        table_with(entry(1024, 8, 1.0))


def test_batches_are_those_profiled_around_the_shape():
    table = LatencyTable.load(H100)
    assert table.batches(512, 512, 1) == (1, 2, 4)
    assert table.batches(512, 512, 3) == ()
