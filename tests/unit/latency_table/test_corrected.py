"""A corrected table: other times, the same everything else."""

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.domain import LatencyTableError, SegmentKind
from tetriserve_backend.latency_table import LatencyTables, Work


def factor(work):
    if work.kind is not SegmentKind.DENOISE:
        return 2.0 if work.kind is SegmentKind.ENCODE else 3.0
    return {1: 1.1, 2: 1.2, 4: 1.4}[work.degree]


def test_every_entry_has_its_factor_and_dispatch_has_none():
    table = small_table(dispatch_s=0.001, batches={(256, 2, 4): 0.2})
    corrected = table.corrected(factor)
    for work in table.works:
        assert corrected.seconds(work) == pytest.approx(factor(work) * table.seconds(work))
    assert len(table.works) == 7 + 1 + 2 and corrected.works == table.works
    assert corrected.dispatch_s == table.dispatch_s and corrected.to_dict().keys() == table.to_dict().keys()
    assert table.step_s(256, 256, 1) == 0.1, "the table itself stays as it is"


def test_shapes_between_lie_on_the_line_unless_their_own_factor_is_known():
    table = small_table()
    between, other = Work(SegmentKind.DENOISE, 384, 384, 2), Work(SegmentKind.DENOISE, 384, 384, 4)
    corrected = table.corrected(lambda work: 5.0 if work == between else 1.0, [between, *table.works[:3]])
    assert corrected.seconds(between) == pytest.approx(5.0 * table.seconds(between))
    assert corrected.seconds(other) == table.seconds(other)
    assert table.corrected(factor).seconds(between) == pytest.approx(1.2 * table.seconds(between))


def test_what_the_table_cannot_tell_cannot_be_corrected():
    for work in (Work(SegmentKind.DENOISE, 1024, 1024), Work(SegmentKind.DENOISE, 256, 256, 1, 2)):
        with pytest.raises(LatencyTableError):
            small_table().corrected(factor, [work])


def test_a_copy_of_the_tables_does_not_follow_and_names_are_resolved():
    table = small_table()
    tables = LatencyTables({"m": table})
    copy = tables.copy()
    tables.put("m", table.corrected(factor))
    assert copy.of("m") is table and tables.name_of("") == tables.name_of("m") == "m"
