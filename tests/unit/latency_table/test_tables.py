"""One table per served model, and a version that tells when one has changed."""

import pytest

from tests.unit.latency_table.test_format import H100
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.scheduler.costs import CostModel

TABLE = LatencyTable.load(H100)


def slower(factor: float) -> LatencyTable:
    raw = TABLE.to_dict()
    raw["step"] = [{**entry, "seconds": factor * entry["seconds"]} for entry in raw["step"]]
    return LatencyTable.from_dict(raw, "slower")


def test_without_a_name_the_only_model_is_meant():
    tables = LatencyTables({"flux": TABLE})
    assert tables.of("") is tables.of("flux") is TABLE
    tables.put("sd3", slower(2.0))
    with pytest.raises(LatencyTableError, match=r"no latency table for model ''; served: flux, sd3"):
        tables.of("")


def test_a_model_that_is_not_served_is_named_with_those_that_are():
    with pytest.raises(LatencyTableError, match=r"no latency table for model 'flax'; served: flux"):
        LatencyTables({"flux": TABLE}).of("flax")


def test_every_change_counts():
    tables = LatencyTables({"flux": TABLE})
    tables.put("sd3", slower(2.0))
    tables.remove("flux")
    tables.remove("flux")
    assert tables.version == 2
    assert tables.models == ("sd3",)


def test_costs_follow_the_tables():
    tables = as_tables(TABLE)
    model = CostModel(tables, 8)
    before = model.of_shape(1024, 1024).step_s[1]
    tables.put("", slower(3.0))
    assert model.of_shape(1024, 1024).step_s[1] == pytest.approx(3.0 * before)
