"""One policy on one trace, from settings to summary."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tetriserve_backend.domain import Request
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.timeline import TimelineWriter
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.noise import StepNoise
from tetriserve_backend.simulator.summary import Summary, SummaryBuilder
from tetriserve_backend.simulator.timed_policy import TimedPolicy
from tetriserve_backend.simulator.virtual_world import RankFailure, VirtualWorld


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The world and the server that a trace is served by.

    Attributes:
        gpus: ranks of the world.
        scheduler, engine: as the live server takes them.
        noise_cv: coefficient of variation of a step's duration around the latency table.
        noise_seed: seed of that noise.
        failures: ranks that die.
    """

    gpus: int
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    noise_cv: float = 0.0
    noise_seed: int = 0
    failures: tuple[RankFailure, ...] = ()


def simulate(
    table: LatencyTable,
    requests: Iterable[Request],
    settings: SimulationSettings,
    *,
    timeline: TimelineWriter | None = None,
    bound_on_time: int | None = None,
    labels: dict[str, Any] | None = None,
) -> Summary:
    """Serve `requests` in virtual time by the engine and the policy that serve live.

    Args:
        table: what segments cost, and what the policy plans with.
        requests: in order of arrival; taken one at a time, so that a generator of any length will do.
        settings: see `SimulationSettings`.
        timeline: where the timeline goes, if anywhere; left open.
        bound_on_time: goes into the summary as it is.
        labels: go into the summary as they are.

    Raises:
        ConfigurationError: the policy is unknown or does not go with the table, or two requests share an id.
    """
    policy = TimedPolicy(make_policy(settings.scheduler, table, settings.gpus))
    core = EngineCore(policy, table, settings.gpus, settings.engine)
    builder = SummaryBuilder(settings.gpus)
    world = VirtualWorld(
        core,
        table,
        settings.gpus,
        timeline=timeline,
        stretch=StepNoise(settings.noise_cv, settings.noise_seed),
        failures=settings.failures,
        on_segment=builder.add_segment,
    )
    for outcome in world.run(requests):
        builder.add_outcome(outcome)
    return builder.build(policy.name, policy.decision_ms, bound_on_time=bound_on_time, labels=labels)
