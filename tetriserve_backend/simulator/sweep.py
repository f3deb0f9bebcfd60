"""A grid of workloads, each served by several policies beside the bound."""

import itertools
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tetriserve_backend.domain import ConfigurationError, image_tokens
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import check_policy_name
from tetriserve_backend.simulator.bound import BoundCache, BoundSettings
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.workload import Mix, Positive, RatePerMinute, Seed, WorkloadSpec, generate

_LOOK_AGAIN_S = 0.5
"""A Ctrl-C that the system gives to another thread, as while a process is started, does not wake a wait without end."""
_NAME = re.compile(r"\w[\w .+=-]{0,79}")


class Variant(BaseModel):
    """A policy under a name of its own, with the settings that make it different.

    Attributes:
        name: of its files, among other things.
        engine: None takes the sweep's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scheduler: SchedulerSettings
    engine: EngineSettings | None = None

    @field_validator("name")
    @classmethod
    def _fit_for_files(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "expected at most 80 letters, digits, spaces and any of _ . + = -, a letter, a digit or _ first:"
                " files are named after it"
            )
        return name


class SweepSpec(BaseModel):
    """What to run.

    Attributes:
        variants: policy names, or mappings with `name` and `scheduler` (any scheduler settings).
        gpus: ranks of the world; None takes the latency table's.
        mixes: as `WorkloadSpec.mix`.
        slo_scales: one trace for each; an entry that is a list makes SLO classes within one trace.
        rates_per_minute: one trace for each.
        seeds: one trace for each; also the seed of the noise.
        workload: everything else about the traces.
        engine: settings of the engine.
        noise_cv: of step times.
        slowdown: how much longer work takes on every rank than the latency table says; the bound knows nothing of it.
        slow_ranks: by rank, below `gpus`, how much longer still.
        dispatch_seconds: None takes the latency table's.
        batching_bound: whether the bound allows for batches.
        bound_time_limit_s: per trace; 0 computes no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: tuple[Variant, ...] = Field(alias="policies")
    gpus: int | None = Field(default=None, ge=1)
    mixes: tuple[Mix, ...] = ("uniform", "skewed")
    slo_scales: tuple[float | tuple[float, ...], ...] = (1.0, 1.2, 1.5)
    rates_per_minute: tuple[RatePerMinute, ...] = (12.0, 24.0, 36.0)
    seeds: tuple[Seed, ...] = (1, 2)
    workload: WorkloadSpec = WorkloadSpec()
    engine: EngineSettings = EngineSettings()
    noise_cv: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    slowdown: Positive = 1.0
    slow_ranks: dict[Annotated[int, Field(ge=0)], Positive] = {}
    dispatch_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    batching_bound: bool = True
    bound_time_limit_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)

    @field_validator("variants", mode="before")
    @classmethod
    def _plain_names(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given
        return [{"name": item, "scheduler": {"policy": item}} if isinstance(item, str) else item for item in given]

    @field_validator("variants", "mixes", "slo_scales", "rates_per_minute", "seeds")
    @classmethod
    def _not_empty(cls, axis: tuple[Any, ...]) -> tuple[Any, ...]:
        if not axis:
            raise ValueError("expected at least one")
        return axis

    @model_validator(mode="after")
    def _sound(self) -> "SweepSpec":
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"policies: two are named {', '.join(map(repr, twice))}; give each a name of its own")
        for variant in self.variants:
            try:
                check_policy_name(variant.scheduler.policy)
            except ConfigurationError as error:
                raise ValueError(f"policies: {variant.name}: {error}") from error
        if self.gpus is not None:
            _check_ranks(self.slow_ranks, self.gpus)
        try:
            self.cells()
        except ValidationError as error:
            raise ValueError(explained(error.errors()[0])) from error
        return self

    def cells(self) -> list[WorkloadSpec]:
        """The workloads of the grid, seeds innermost."""
        axes = itertools.product(self.mixes, self.slo_scales, self.rates_per_minute, self.seeds)
        return [
            WorkloadSpec.model_validate(
                {
                    **self.workload.model_dump(),
                    "mix": mix,
                    "slo_scales": scale if isinstance(scale, tuple) else (scale,),
                    "rate_per_minute": rate,
                    "seed": seed,
                }
            )
            for mix, scale, rate, seed in axes
        ]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of everything that may be asked for, fewest tokens first."""
        found = {shape for cell in self.cells() for shape, share in cell.weights().items() if share > 0}
        return tuple(sorted(found, key=lambda shape: (image_tokens(*shape), shape)))

    def check_table(self, table: LatencyTable) -> None:
        """Refuse a table that cannot tell the time of everything that may be asked for, or has too few ranks.

        Raises:
            ConfigurationError: a rank of `slow_ranks` is none of the world's.
            LatencyTableError: it lacks a shape; names its file and the shape, and says what to do.
        """
        try:
            _check_ranks(self.slow_ranks, self.gpus or table.world_size)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        for shape in self.shapes:
            table.check_resolution(*shape)

    def simulation(self, variant: Variant, cell: WorkloadSpec, table: LatencyTable) -> SimulationSettings:
        """The world and the server of one variant on one workload."""
        return SimulationSettings(
            self.gpus or table.world_size,
            variant.scheduler,
            variant.engine or self.engine,
            noise_cv=self.noise_cv,
            noise_seed=cell.seed,
            slowdown=self.slowdown,
            slow_ranks=self.slow_ranks,
        )


def _check_ranks(slow_ranks: Mapping[int, float], gpus: int) -> None:
    missing = ", ".join(str(rank) for rank in sorted(slow_ranks) if rank >= gpus)
    if missing:
        raise ValueError(f"slow_ranks: expected ranks 0 to {gpus - 1} of {gpus} GPUs, got {missing}")


@dataclass(frozen=True, slots=True)
class CellResult:
    """One workload: a summary per variant, in the order of the spec, named after the variant."""

    workload: WorkloadSpec
    summaries: tuple[Summary, ...]


def run_sweep(
    spec: SweepSpec,
    table: LatencyTable,
    *,
    processes: int = 1,
    bound_cache: Path | None = None,
    cells: Sequence[WorkloadSpec] | None = None,
) -> Iterator[CellResult]:
    """Run the grid; yields cells in their order, whatever the number of processes.

    Args:
        spec: what to run.
        table: what work costs.
        processes: how many cells to run at a time.
        bound_cache: folder that keeps bounds between runs.
        cells: the workloads; None takes all of the grid.

    Raises:
        ConfigurationError: a policy is unknown or does not go with the table, or a slow rank is not there.
        LatencyTableError: the table lacks a shape of the grid; nothing is run.
        BoundError: the bound's solver failed.
    """
    spec.check_table(table)
    if spec.dispatch_seconds is not None:
        table = table_with_dispatch(table, spec.dispatch_seconds)
    cells = spec.cells() if cells is None else cells
    if processes <= 1:
        for cell in cells:
            yield _run_cell(spec, table, cell, bound_cache)
        return
    others = set(active_children())
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_ctrl_c_to_parent) as pool:
        try:
            for job in [pool.submit(_run_cell, spec, table, cell, bound_cache) for cell in cells]:
                while not wait([job], timeout=_LOOK_AGAIN_S).done:
                    pass
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.kill()
            raise


def _leave_ctrl_c_to_parent() -> None:
    """A terminal sends it to all processes: one that it met with the lock of the results in hand would keep that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def table_with_dispatch(table: LatencyTable, dispatch_s: float) -> LatencyTable:
    """The same table with another cost per segment; what moving a latent costs on top of that stays."""
    document = table.to_dict()
    for move in document.get("hand_over", ()):
        move["between_seconds"] = max(0.0, move["between_seconds"] + dispatch_s - table.dispatch_s)
    return LatencyTable.from_dict({**document, "dispatch_seconds": dispatch_s}, origin=table.origin)


def _run_cell(spec: SweepSpec, table: LatencyTable, cell: WorkloadSpec, bound_cache: Path | None) -> CellResult:
    requests = [request.to_request() for request in generate(cell)]
    gpus = spec.gpus or table.world_size
    bound_on_time = None
    if spec.bound_time_limit_s:
        how = BoundSettings(batching=spec.batching_bound, time_limit_s=spec.bound_time_limit_s)
        bound_on_time = BoundCache(bound_cache).bound(table, requests, gpus, how).on_time
    summaries = []
    for variant in spec.variants:
        labels = {**cell.labels(), "policy": variant.scheduler.policy}
        settings = spec.simulation(variant, cell, table)
        summary = simulate(table, requests, settings, bound_on_time=bound_on_time, labels=labels)
        summaries.append(summary.named(variant.name))
    return CellResult(cell, tuple(summaries))
