"""One policy on one trace, from settings to summary."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tetriserve_backend.domain import Request, Segment
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.timeline import TimelineWriter
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.noise import SlowRanks, StepNoise
from tetriserve_backend.simulator.summary import Summary, SummaryBuilder
from tetriserve_backend.simulator.timed_policy import TimedPolicy
from tetriserve_backend.simulator.virtual_world import RankFailure, VirtualWorld

Stretch: TypeAlias = Callable[[Segment, float], float]
"""How much longer the work of a segment takes that starts at a time, in seconds."""


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The world and the server that a trace is served by.

    Attributes:
        gpus: ranks of the world.
        scheduler, engine: as the live server takes them.
        noise_cv: coefficient of variation of a step's duration around the latency table.
        noise_seed: seed of that noise.
        failures: ranks that die.
        slowdown: how much longer work takes on every rank than the latency table says.
        slow_ranks: how much longer still on single ranks.
        pace: of a real run (`Pace`), to repeat it.
    """

    gpus: int
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    noise_cv: float = 0.0
    noise_seed: int = 0
    failures: tuple[RankFailure, ...] = ()
    slowdown: float = 1.0
    slow_ranks: Mapping[int, float] = field(default_factory=dict)
    pace: Stretch | None = None


def simulate(
    given: LatencyTable | LatencyTables,
    requests: Iterable[Request],
    settings: SimulationSettings,
    *,
    true_table: LatencyTable | LatencyTables | None = None,
    timeline: TimelineWriter | None = None,
    bound_on_time: int | None = None,
    labels: dict[str, Any] | None = None,
) -> Summary:
    """Serve `requests` in virtual time by the engine and the policy that serve live.

    Args:
        given: what the policy plans with: a table for all requests, or one per model; stays as it is.
        requests: in order of arrival; taken one at a time, so that a generator of any length will do.
        settings: see `SimulationSettings`.
        true_table: what segments cost; None takes `given`.
        timeline: where the timeline goes, if anywhere; left open.
        bound_on_time: goes into the summary as it is.
        labels: go into the summary as they are.

    Raises:
        ConfigurationError: the policy is unknown or does not go with the table, or two requests share an id.
    """
    # Drift correction changes the tables of a run; those of the caller are not its own.
    served = as_tables(given)
    tables = LatencyTables({model: served.of(model) for model in served.models})
    policy = TimedPolicy(make_policy(settings.scheduler, tables, settings.gpus))
    core = EngineCore(policy, tables, settings.gpus, settings.engine)
    noise = StepNoise(settings.noise_cv, settings.noise_seed)
    slow = SlowRanks(settings.slowdown, settings.slow_ranks)

    def stretch(segment: Segment, start_s: float) -> float:
        own = settings.pace(segment, start_s) if settings.pace is not None else 1.0
        return noise(segment) * slow(segment) * own

    builder = SummaryBuilder(settings.gpus)
    world = VirtualWorld(
        core,
        true_table or served,
        settings.gpus,
        timeline=timeline,
        stretch=stretch,
        failures=settings.failures,
        on_segment=builder.add_segment,
    )
    for outcome in world.run(requests):
        builder.add_outcome(outcome)
    return builder.build(policy.name, policy.decision_ms, bound_on_time=bound_on_time, labels=labels)
