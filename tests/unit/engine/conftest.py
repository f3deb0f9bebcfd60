"""A latency table with round numbers and helpers to drive the pure core by hand."""

import pytest

from tetriserve_backend.domain import Plan, Request
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.view import SchedulerView

STEP_S = {256: (0.1, 0.08, 0.07), 512: (0.4, 0.2, 0.1)}


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": "test",
            "device": "test",
            "world_size": 4,
            "dtype": "float32",
            "source": "analytic",
            "software": {},
            "step": [
                {"height": side, "width": side, "batch": 1, "sp": sp, "seconds": seconds}
                for side, column in STEP_S.items()
                for sp, seconds in zip((1, 2, 4), column, strict=True)
            ]
            + [{"height": 256, "width": 256, "batch": 2, "sp": 1, "seconds": 0.15}],
            "encode": [{"batch": 1, "seconds": 0.02}],
            "decode": [{"height": side, "width": side, "seconds": 0.05} for side in STEP_S],
            "dispatch_seconds": 0.001,
        },
        origin="test",
    )


class ScriptedPolicy:
    """Plays plans that the test wrote; an empty plan once they are used up."""

    name = "scripted"

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.views: list[SchedulerView] = []

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        self.views.append(view)
        return self.plans.pop(0) if self.plans else Plan()


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy()


@pytest.fixture
def core(policy: ScriptedPolicy, table: LatencyTable) -> EngineCore:
    return EngineCore(policy, table, 4, EngineSettings(max_retries=1))


def make_request(request_id: str = "r0", side: int = 256, arrival_s: float = 0.0, slo_s: float = 5.0) -> Request:
    return Request(request_id, side, side, num_steps=5, arrival_s=arrival_s, deadline_s=arrival_s + slo_s)
