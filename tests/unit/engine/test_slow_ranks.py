"""What the engine does about ranks that are slower than the others."""

import itertools
import math
import random

import pytest

from tests.unit.engine.conftest import Machine
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.config import DriftSettings, EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.metrics import drift_metrics, drift_status
from tetriserve_backend.engine.rank_speeds import Evidence
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.virtual_world import RankFailure, VirtualWorld
from tetriserve_backend.simulator.workload import WorkloadSpec, generate


@pytest.mark.parametrize("also_slower", [1.0, 1.2])
def test_a_slow_rank_is_told_from_slow_work(table, also_slower):
    machine, draw = Machine(table, ranks=8), random.Random(2)
    mixed_work(machine, 1.3, 600, draw, also_slower=also_slower)
    monitor = machine.monitor
    assert dict(monitor.slow_ranks) == {3: pytest.approx(1.3, rel=0.03)}
    assert [rank.ratio for rank in monitor.snapshot().ranks] == [
        pytest.approx(1.3 if rank == 3 else 1.0, abs=0.03) for rank in range(8)
    ]
    named = [text for text in machine.warnings if text.startswith("rank ")]
    assert len(named) == 1 and named[0].startswith("rank 3 takes 1.")
    for ranks in [(0,), (3,), (2, 3), (4, 5, 6, 7), (0, 1, 2, 3)]:
        expected = machine.step_factor(256, len(ranks)) * monitor.slowness(ranks)
        assert expected == pytest.approx(also_slower * (1.3 if 3 in ranks else 1.0), rel=0.03)


def mixed_work(machine, slow, count, draw, *, also_slower=1.0):
    """Segments of all sizes on groups of working ranks of eight; rank 3 takes `slow` times as long."""
    for _ in range(count):
        size = draw.choice([1, 1, 2, 4])
        start = draw.randrange(0, 8, size)
        group = tuple(range(start, start + size))
        if machine.monitor.quarantined_ranks.isdisjoint(group):
            machine.run(group, also_slower * (slow if 3 in group else 1.0) * draw.lognormvariate(0.0, 0.01))


@pytest.mark.parametrize("slow", [2.3, 4.0, 20.0])
def test_a_rank_that_is_of_little_use_gets_no_work_and_the_operator_is_told_of_it_alone(table, slow):
    machine, draw = Machine(table, ranks=8), random.Random(4)
    mixed_work(machine, slow, 300, draw)
    assert machine.monitor.quarantined_ranks == {3}
    assert [rank.is_quarantined for rank in machine.monitor.snapshot().ranks] == [rank == 3 for rank in range(8)]
    texts = [text for text in machine.warnings if "rank" in text.partition(" takes ")[0] or "no work" in text]
    assert any(text.startswith("rank 3 gets no work for a while") for text in texts)
    accused = {text.partition(" takes ")[0] for text in texts if " takes " in text}
    assert "rank 3" in accused and all("3" in name for name in accused if name.startswith(("rank", "one"))), accused


def test_monitoring_is_told_who_gets_no_work(table):
    machine = Machine(table, ranks=8)
    mixed_work(machine, 4.0, 300, random.Random(4))
    drift = machine.monitor.snapshot()
    assert drift_status(drift)["quarantined"] == [3]
    (shown,) = (metric for metric in drift_metrics(drift) if metric.name == "tetriserve_rank_quarantined")
    assert {sample.labels: sample.value for sample in shown.samples} == {
        (("rank", str(rank)),): float(rank == 3) for rank in range(8)
    }


def test_a_rank_that_is_well_again_gets_work_again(table):
    machine, draw = Machine(table, ranks=8), random.Random(4)
    mixed_work(machine, 3.0, 300, draw)
    assert machine.monitor.quarantined_ranks == {3}
    mixed_work(machine, 1.0, 1200, draw)
    assert not machine.monitor.quarantined_ranks and not machine.monitor.slow_ranks
    assert machine.monitor.snapshot().ranks[3].ratio == pytest.approx(1.0, abs=0.05)


def test_without_correction_no_rank_is_quarantined(table):
    machine = Machine(table, ranks=8, correction=False)
    mixed_work(machine, 4.0, 300, random.Random(4))
    assert not machine.monitor.quarantined_ranks


def test_a_rank_comes_back_whatever_is_measured_meanwhile(table):
    machine, draw = Machine(table, ranks=8), random.Random(4)
    mixed_work(machine, 3.0, 300, draw)
    out = machine.monitor.quarantined_ranks
    machine.monitor.release_ranks(machine.now_s)
    assert machine.monitor.quarantined_ranks is out
    machine.monitor.release_ranks(machine.now_s + 300.0)
    assert not machine.monitor.quarantined_ranks


def test_slow_encodes_accuse_no_rank(table):
    machine = Machine(table, ranks=8)
    for _ in range(60):
        for rank in range(8):
            machine.run((rank,), 20.0 if rank == 3 else 1.0, kind=SegmentKind.ENCODE)
            machine.run((0, 1, 2, 3), 1.0)
    assert not machine.monitor.slow_ranks and not machine.monitor.quarantined_ranks


def served_with_a_slow_rank(h100, slow, *, mix="uniform", policy="tetris", failures=(), **drift):
    """Share of requests in time on eight ranks of which rank 3 is `slow` times slower, and when it worked."""
    when_s = []

    def note(segment, start_s, end_s):
        if 3 in segment.placement.ranks:
            when_s.append(start_s)

    tables = LatencyTables({"": h100})
    scheduler, engine = SchedulerSettings(policy=policy), EngineSettings(drift=DriftSettings(**drift))
    core = EngineCore(make_policy(scheduler, tables, 8), tables, 8, engine)

    def stretch(segment, start_s):
        return slow if 3 in segment.placement.ranks else 1.0

    world = VirtualWorld(core, h100, 8, failures=failures, stretch=stretch, on_segment=note)
    workload = WorkloadSpec(mix=mix, requests=300, rate_per_minute=36.0, slo_scales=(1.5,))
    outcomes = list(world.run([record.to_request() for record in generate(workload)]))
    return sum(outcome.on_time for outcome in outcomes) / len(outcomes), when_s


def test_a_slow_rank_costs_hardly_more_than_one_that_is_missing(h100):
    kept, _ = served_with_a_slow_rank(h100, 4.0, quarantine_ratio=None)
    missing, nothing = served_with_a_slow_rank(h100, 4.0, failures=[RankFailure(3, 0.01, math.inf)])
    served, when_s = served_with_a_slow_rank(h100, 4.0)
    assert served > kept and served > missing - 0.05
    assert len(nothing) <= 1 and when_s
    pause_s = max(later - earlier for earlier, later in itertools.pairwise(when_s))
    assert pause_s >= 300.0 or when_s[-1] < 0.5 * 60.0 * 300 / 36.0, "from some time on it gets no work"


@pytest.mark.parametrize("ratio", [1.3, 1.7])
def test_a_rank_that_is_of_use_works_on(h100, ratio):
    served, _ = served_with_a_slow_rank(h100, ratio)
    kept, _ = served_with_a_slow_rank(h100, ratio, quarantine_ratio=None)
    missing, _ = served_with_a_slow_rank(h100, ratio, failures=[RankFailure(3, 0.01, math.inf)])
    assert served == kept > missing - 0.05


def test_narrow_work_keeps_a_slow_rank(h100):
    served, _ = served_with_a_slow_rank(h100, 3.0, mix="256x256", policy="fixed-sp1")
    kept, _ = served_with_a_slow_rank(h100, 3.0, mix="256x256", policy="fixed-sp1", quarantine_ratio=None)
    assert served == kept


def test_ranks_in_quarantine_work_where_there_are_no_others(table):
    tables = LatencyTables({"": table})
    policy = make_policy(SchedulerSettings(policy="fixed-sp1"), tables, 2)
    core = EngineCore(policy, tables, 2, EngineSettings())
    quarantine = core._drift._quarantine
    quarantine.note(2, 1.0)
    for segments in (8, 24):
        quarantine.review({1: Evidence(9.0, segments, is_alone=True)}, float(segments))
    assert [rank.rank for rank in core.view(30.0).ranks] == [0]
    core.handle(ev.WorkerLost(0, "gone"), 30.0)
    assert [rank.rank for rank in core.view(30.0).ranks] == [1]


def test_a_rank_with_a_new_worker_has_a_new_chance(table):
    machine = Machine(table)
    for _ in range(40):
        for rank in range(4):
            machine.run((rank,), 1.5 if rank == 2 else 1.0)
    assert set(machine.monitor.slow_ranks) == {2}
    machine.monitor.forget_rank(2)
    for _ in range(40):
        for rank in range(4):
            machine.run((rank,), 1.0)
    assert not machine.monitor.slow_ranks and machine.monitor.slowness((2,)) == 1.0
