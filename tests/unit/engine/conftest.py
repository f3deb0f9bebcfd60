"""A latency table with round numbers and helpers to drive the pure core by hand."""

import pytest

from tetriserve_backend.domain import Placement, Plan, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.config import DriftSettings, EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.drift import DriftMonitor
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.view import SchedulerView

STEP_S = {256: (0.1, 0.08, 0.07), 512: (0.4, 0.2, 0.1)}
STEPS = 4


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


class Machine:
    """Ranks whose true times are known, watched by a monitor."""

    def __init__(self, table, *, ranks=4, **settings):
        self.table, self.tables = table, LatencyTables({"m": table})
        self.monitor = DriftMonitor(self.tables, ranks, DriftSettings(**settings))
        self.now_s, self.warnings = 0.0, []

    def run(self, ranks, ratio, *, side=256, kind=SegmentKind.DENOISE, count=1):
        for _ in range(count):
            segment = Segment(0, kind, (SegmentPart("r0", 0, STEPS),), Placement(ranks), side, side, "m")
            times = {SegmentKind.ENCODE: self.table.encode_s(), SegmentKind.DECODE: self.table.decode_s(side, side)}
            expected_s = times.get(kind) or STEPS * self.table.step_s(side, side, len(ranks))
            self.now_s += 0.5
            self.monitor.release_ranks(self.now_s)
            self.warnings += self.monitor.observe(segment, self.now_s - ratio * expected_s, self.now_s, self.now_s)

    def step_factor(self, side, degree):
        return self.tables.of("m").step_s(side, side, degree) / self.table.step_s(side, side, degree)
