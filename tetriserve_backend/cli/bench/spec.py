"""What a benchmark is: a grid of workloads and policies, where it runs, and where its deadlines come from."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tetriserve_backend.cli.bench.ranks import on_ranks
from tetriserve_backend.cli.workload import cheapest_gpu_seconds
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.engine.prediction import fastest_latency_s
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.sweep import SweepSpec, Variant
from tetriserve_backend.simulator.workload import Positive
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import merge, parse_assignment, read_settings_file
from tetriserve_profiling.settings import MAX_REPEATS, ProfileSettings

_FROM_GRID = ("scheduler", "engine", "timeline", "latency_table")
_RATE_DIGITS = 4
"""Of a rate that follows from a load, whatever its size."""
_SIMULATED_ONLY = ("noise_cv", "slowdown", "slow_ranks", "dispatch_seconds")


class Where(str, Enum):
    """What serves the traces.

    LIVE: `tetriserve serve` on the ranks of this machine, one server per policy; the simulator predicts each run.
    SIMULATOR: the simulator alone, for GPUs that are not there.
    """

    LIVE = "live"
    SIMULATOR = "simulator"


class SloBasis(str, Enum):
    """What an SLO scale multiplies.

    GIVEN: the `slo_s` of the workload. FASTEST: the shortest latency that the latency table allows the resolution on
    the ranks that serve.
    """

    GIVEN = "given"
    FASTEST = "fastest"


class BenchSpec(BaseModel):
    """What to run.

    Attributes:
        where: see `Where`.
        grid: policies and workloads, as for `tetriserve sweep`. The bound is for the simulator's runs; what changes the
            cost of work is refused for live ones, which need prompts. `gpus` are the ranks of the servers too.
        slo: see `SloBasis`.
        load: share of the ranks' time that a trace would fill with every request on the fewest ranks it can run on. It
            sets the rate, so that a benchmark is as hard on a fast machine as on a slow one; None leaves the grid's.
        trace_s: how long a trace lasts; sets the number of requests. None leaves the workload's.
        latency_table: a `*.latency.json`, seen from the configuration's folder; None measures one before the first
            run, on the ranks that will serve (LIVE only).
        measure_again: measure a table after each trace too, while no policy serves; predictions use the mean of all.
            Needs `take_turns`, and no `hold_pace`.
        measure_batches: batch sizes of a measured table; servers form no others, so 1 alone serves every image alone.
        measure_repeats: samples of each entry of a table.
        measure_rounds: visits over which they are spread, which evens out a machine whose speed wanders.
        hold_pace: the ranks take so many times as long for everything as in their fastest moment, which is measured
            first, and keep to that (`model.pace_table`): on a machine whose speed wanders, a run is then one that can
            be repeated, and foretold. The latency table is measured at that pace, and a run in which they could not
            keep to it is done again (two at most in all). None lets them go as fast as they can (LIVE only).
        expect_speed_up: how many times as fast as one rank the fastest degree should be at the largest resolution.
            Where ranks together were never so quick while their fastest moment was measured, or without `hold_pace` the
            first table, that is measured again (twice at most). The comparison tells what it was, and notes it where
            that is less.
        server: settings of `tetriserve serve`; scheduler and engine are the grid's.
        output_format: what the clients ask for.
        take_turns: all servers stay up and each trace goes to one after the other, so that a machine whose speed
            wanders is the same to all policies; else one server is up at a time, which is what GPUs have room for.
        pause_s: rest before each trace.
        give_up_s: how long a client waits for its image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: Where = Where.LIVE
    grid: SweepSpec
    slo: SloBasis = SloBasis.GIVEN
    load: Positive | None = None
    trace_s: Positive | None = None
    latency_table: str | None = None
    measure_again: bool = False
    measure_batches: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    measure_repeats: int = Field(default=12, ge=2, le=MAX_REPEATS)
    measure_rounds: int = Field(default=4, ge=1)
    hold_pace: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    expect_speed_up: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    server: ServerSettings = ServerSettings()
    output_format: ImageFormat = ImageFormat.JPEG
    take_turns: bool = False
    pause_s: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    give_up_s: Positive = 300.0

    @field_validator("server")
    @classmethod
    def _nothing_twice(cls, server: ServerSettings) -> ServerSettings:
        twice = [name for name in _FROM_GRID if name in server.model_fields_set]
        if twice:
            raise ValueError(f"{', '.join(twice)}: not settings of a benchmark's server; see grid and latency_table")
        if server.models:
            raise ValueError("models: a benchmark serves one model; say which in model")
        return server

    @field_validator("measure_batches")
    @classmethod
    def _single_images(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if 1 not in batches:
            raise ValueError("expected 1 among them, since every batch may end up with one request")
        return batches

    @model_validator(mode="after")
    def _ready_for_servers(self) -> "BenchSpec":
        if self.where is not Where.LIVE:
            return self
        unreal = sorted(self.grid.model_fields_set.intersection(_SIMULATED_ONLY))
        if unreal:
            raise ValueError(f"grid.{', grid.'.join(unreal)}: only the simulator can change what work costs")
        prompts, gpus, ranks = self.grid.workload.prompts, self.grid.gpus, self.server.executor.world_size
        if not prompts or not all(prompt.strip() for prompt in prompts):
            got = f"got {list(prompts)!r:.80}"
            raise ValueError(
                f"grid.workload.prompts: expected texts for the servers to draw, none of them blank, {got}"
            )
        if gpus is not None and ranks not in (None, gpus):
            raise ValueError(f"grid.gpus: expected server.executor.world_size, which is {ranks}, got {gpus}")
        return self

    @model_validator(mode="after")
    def _complete(self) -> "BenchSpec":
        if self.where is Where.SIMULATOR and self.latency_table is None:
            raise ValueError("latency_table: the simulator needs one")
        if self.measure_again and not self.take_turns:
            raise ValueError("measure_again: needs take_turns, or there is no time between traces")
        if self.measure_again and self.latency_table is not None:
            raise ValueError("measure_again: goes without latency_table, which is another machine's or another day's")
        if self.measure_again and self.hold_pace is not None:
            raise ValueError("measure_again: goes without hold_pace, at which work costs the same all along")
        if self.hold_pace is not None and (self.where is not Where.LIVE or self.latency_table is not None):
            raise ValueError("hold_pace: only for live runs whose latency table is measured")
        if self.hold_pace is not None and self.server.model.device == "cuda":
            raise ValueError("hold_pace: only on CPU; GPUs keep to a pace with locked clocks")
        if self.server.model.pace_table is not None:
            raise ValueError("server.model.pace_table: not a setting of a benchmark's server; see hold_pace")
        if self.load is not None and len(self.grid.mixes) > 1:
            raise ValueError("load: sets one rate, so there can be one mix only")
        if self.trace_s is not None and self.load is None and len(self.grid.rates_per_minute) > 1:
            raise ValueError("trace_s: sets one number of requests, so there can be one rate only")
        return self

    @property
    def profile(self) -> ProfileSettings:
        """What the measured table is made of."""
        return ProfileSettings(
            resolutions=self.grid.shapes,
            batches=self.measure_batches,
            repeats=self.measure_repeats,
            rounds=self.measure_rounds,
        )

    def unpaced_server(self) -> ServerSettings:
        """The server's settings, with as many ranks as the grid says."""
        if self.grid.gpus is None:
            return self.server
        executor = self.server.executor.model_copy(update={"world_size": self.grid.gpus})
        return self.server.model_copy(update={"executor": executor})

    def paced_server(self, pace_table: Path) -> ServerSettings:
        """The same with the pace that its ranks keep to, if they do."""
        server = self.unpaced_server()
        if self.hold_pace is None:
            return server
        model = server.model.model_copy(update={"pace_table": str(pace_table.absolute())})
        return server.model_copy(update={"model": model})

    def server_settings(self, variant: Variant, table: Path, pace_table: Path, timeline: Path) -> ServerSettings:
        """What the server of one policy is told."""
        changes = {
            "scheduler": variant.scheduler,
            "engine": variant.engine or self.grid.engine,
            "latency_table": str(table.absolute()),
            "timeline": str(timeline.absolute()),
        }
        return self.paced_server(pace_table).model_copy(update=changes)

    def concrete(self, table: LatencyTable) -> SweepSpec:
        """The grid with SLOs, rates and requests as numbers, as far as they follow from the latency table.

        Raises:
            ConfigurationError: a rank of `slow_ranks` is none of the world's, or `load` or `trace_s` is out of reason.
            LatencyTableError: the table lacks a resolution of the grid, or whatever the ranks could run.
        """
        self.grid.check_table(table)
        changes: dict[str, Any] = {}
        rates = self.grid.rates_per_minute
        if self.slo is SloBasis.FASTEST:
            steps, usable = self.grid.workload.max_steps, on_ranks(table, self._ranks(table))
            fastest_s = {shape: fastest_latency_s(usable, *shape, steps) for shape in self.grid.shapes}
            changes["slo_s"] = {f"{h}x{w}": round(seconds, 6) for (h, w), seconds in fastest_s.items()}
        if self.load is not None:
            rate = 60 * self.load * self._ranks(table) / self._mean_gpu_seconds(table)
            rates = (float(f"{rate:.{_RATE_DIGITS}g}"),)
        try:
            if self.trace_s is not None:
                changes["requests"] = max(1, round(rates[0] * self.trace_s / 60))
            workload = self.grid.workload.model_copy(update=changes)
            grid = self.grid.model_copy(update={"workload": workload, "rates_per_minute": rates})
            grid.cells()
        except (OverflowError, ValidationError) as error:
            told = explained(error.errors()[0]) if isinstance(error, ValidationError) else f"{error}"
            raise ConfigurationError(
                f"load, trace_s: expected values that make a rate and a number of requests, got {self.load} and"
                f" {self.trace_s}: {told}"
            ) from error
        return grid

    def _ranks(self, table: LatencyTable) -> int:
        """Those that serve."""
        servers = self.server.executor.world_size if self.where is Where.LIVE else None
        return self.grid.gpus or servers or table.world_size

    def _mean_gpu_seconds(self, table: LatencyTable) -> float:
        """Of a request of the mix that takes no more ranks than it must."""
        workload = self.grid.cells()[0]
        steps = (workload.min_steps + workload.max_steps) / 2
        return sum(
            share * cheapest_gpu_seconds(table, height, width, steps)
            for (height, width), share in workload.weights().items()
        )


def read_spec(config: Path, assignments: Sequence[str]) -> BenchSpec:
    """The benchmark of a YAML file, with `key=value` assignments on top; file names in it become absolute.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is unknown or wrong; names it.
    """
    tree = merge([read_settings_file(config), *(parse_assignment(text) for text in assignments)])
    table = tree.get("latency_table")
    if isinstance(table, str):
        tree["latency_table"] = str((config.parent / table).resolve())
    try:
        return BenchSpec.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(f"{config}: {'; '.join(explained(item) for item in error.errors())}") from error
