"""Every setting of the server: one frozen model per layer, composed here."""

import re
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.triton_adapter.image_format import ImageFormat

GUIDANCE_MAX: Final = 100.0
LATENCY_MAX_S: Final = 86400.0
ClosableApi: TypeAlias = Literal["shared-memory", "trace", "logging", "model-repository"]
CLOSABLE_APIS: Final[tuple[ClosableApi, ...]] = get_args(ClosableApi)
"""Those of Triton's APIs that change the server rather than use it, by the names that Triton gives them."""
_UNNAMEABLE: Final = re.compile(r"[^A-Za-z0-9._-]+")


class RequestDefaults(BaseModel):
    """What a request gets when it does not say, and the limits that do not depend on the latency table.

    Attributes:
        model: name of the served model; empty takes the only one.
        height, width: pixels, multiples of 16.
        num_inference_steps: denoising steps, 1 … `max_num_inference_steps`.
        guidance_scale: 0 … `GUIDANCE_MAX`; None takes the model's own.
        latency_threshold: SLO in seconds, more than 0 and at most `LATENCY_MAX_S`.
        output_format: `png`, `jpeg`, `webp` or `raw`.
        max_num_images: the most images that one request may ask for.
        max_num_inference_steps: the most steps that one request may ask for.
        max_prompt_chars: the longest prompt, in characters.
        ignored_parameters: request parameters that are let through unread; any other unknown one is an
            error. Name here what `--http-header-forward-pattern` adds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    height: int = Field(default=512, gt=0, multiple_of=PIXELS_PER_TOKEN_SIDE)
    width: int = Field(default=512, gt=0, multiple_of=PIXELS_PER_TOKEN_SIDE)
    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0.0, le=GUIDANCE_MAX)
    latency_threshold: float = Field(default=30.0, gt=0.0, le=LATENCY_MAX_S)
    output_format: ImageFormat = ImageFormat.PNG
    max_num_images: int = Field(default=8, ge=1)
    max_num_inference_steps: int = Field(default=200, ge=1)
    max_prompt_chars: int = Field(default=8192, ge=1)
    ignored_parameters: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _default_within_limit(self) -> "RequestDefaults":
        if self.num_inference_steps > self.max_num_inference_steps:
            raise ValueError(
                f"num_inference_steps = {self.num_inference_steps} is more than "
                f"max_num_inference_steps = {self.max_num_inference_steps}"
            )
        return self


class FrontSettings(BaseModel):
    """Settings of `tetriserve_infer`.

    Attributes:
        max_concurrent: requests that may wait in the front at a time; one more is answered UNAVAILABLE.
        cancel_poll_s: how often the front looks whether a client is gone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_concurrent: int = Field(default=256, ge=1)
    cancel_poll_s: float = Field(default=0.1, gt=0.0)


class SupervisorSettings(BaseModel):
    """Settings of `tetriserve serve`'s supervisor. Times are seconds.

    Attributes:
        ready_timeout_s: how long a start may take, the measuring of a latency table included.
        probe_interval_s: time between two probes.
        probe_timeout_s: how long a probe may take before it counts as failed.
        probe_failures: failed probes in a row after which the server is started anew.
        max_restarts: restarts within `restart_window_s` after which the supervisor gives up.
        restart_window_s: see `max_restarts`.
        no_rank_timeout_s: how long no rank at all may be usable before probes count as failed. A lost rank
            loads its model anew, so this must be longer than that takes.
        exit_timeout_s: how long tritonserver may take to end, once drained, before it is killed.
        open_apis: which of `shared-memory`, `trace`, `logging` and `model-repository` every client may call; the
            others refuse all. Through them anybody could name files for the server to write and memory for it to
            read, and before Triton 25.07 take it over (CVE-2025-23319, 23320, 23334). `model-repository`, by which
            models are loaded and unloaded, and code of a client's own could be, is closed only where that is possible
            (`--model-control explicit`) and other machines reach the server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready_timeout_s: float = Field(default=1800.0, gt=0.0)
    probe_interval_s: float = Field(default=2.0, gt=0.0)
    probe_timeout_s: float = Field(default=3.0, gt=0.0)
    probe_failures: int = Field(default=2, ge=1)
    max_restarts: int = Field(default=5, ge=0)
    restart_window_s: float = Field(default=600.0, gt=0.0)
    no_rank_timeout_s: float = Field(default=120.0, gt=0.0)
    exit_timeout_s: float = Field(default=15.0, gt=0.0)
    open_apis: tuple[ClosableApi, ...] = ()


class ServedModelSettings(BaseModel):
    """One of the models that share the ranks.

    Attributes:
        name: by which requests choose it, and after `denoise_` Triton's model that stands for it; empty takes the
            last part of the path.
        model: see `ModelSettings`.
        latency_table, quick_resolutions: as in `ServerSettings`, for this model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", max_length=100)
    model: ModelSettings = ModelSettings()
    latency_table: str | None = None
    quick_resolutions: tuple[str, ...] | None = None

    @field_validator("quick_resolutions")
    @classmethod
    def _parseable(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in value or ():
            parse_resolution(text)
        return value

    def named(self) -> "ServedModelSettings":
        """The same with a name in any case."""
        name = self.name or _UNNAMEABLE.sub("_", Path(self.model.path).name)
        return self.model_copy(update={"name": name})


class ServerSettings(BaseModel):
    """The whole configuration.

    Attributes:
        models: those that share the ranks, if there are several; what one of them does not say about itself is
            as `model` and `quick_resolutions` say. Empty serves `model` alone.
        latency_table: path of the latency table of `model`; None takes an asset of the model repository, else the
            cache, else one is measured at start.
        quick_resolutions: `HEIGHTxWIDTH` of the shapes to measure when no table is there; they bound the
            shapes that will be served. None leaves the choice to the profiler.
        timeline: path of the timeline to write; None writes none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    executor: ExecutorSettings = ExecutorSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    engine: EngineSettings = EngineSettings()
    request: RequestDefaults = RequestDefaults()
    front: FrontSettings = FrontSettings()
    models: tuple[ServedModelSettings, ...] = ()
    supervisor: SupervisorSettings = SupervisorSettings()
    latency_table: str | None = None
    quick_resolutions: tuple[str, ...] | None = None
    timeline: str | None = None

    @field_validator("quick_resolutions")
    @classmethod
    def _parseable(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in value or ():
            parse_resolution(text)
        return value

    @model_validator(mode="after")
    def _models_apart(self) -> "ServerSettings":
        names = [model.name for model in self.served_models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: two are named '{name}'; give each a name of its own")
        if self.latency_table is not None and len(names) > 1:
            raise ValueError("latency_table: is of one model, but there are several; set it in models")
        return self

    @property
    def served_models(self) -> tuple[ServedModelSettings, ...]:
        """Each model with its name and all that is said about it, in order."""
        alone = ServedModelSettings(
            model=self.model, latency_table=self.latency_table, quick_resolutions=self.quick_resolutions
        )
        return tuple(_completed(model, alone).named() for model in self.models) or (alone.named(),)


def _completed(settings: ServedModelSettings, defaults: ServedModelSettings) -> ServedModelSettings:
    said = {name: getattr(settings.model, name) for name in settings.model.model_fields_set}
    own = {name: getattr(settings, name) for name in settings.model_fields_set}
    return defaults.model_copy(update={**own, "model": defaults.model.model_copy(update=said)})


def parse_resolution(text: str) -> tuple[int, int]:
    """`(height, width)` in pixels from `HEIGHTxWIDTH`.

    Raises:
        ValueError: not of that form, or not positive multiples of 16.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"'{text}' is not a resolution; allowed: HEIGHTxWIDTH in pixels, such as 512x512")
    shape = int(height), int(width)
    if any(side <= 0 or side % PIXELS_PER_TOKEN_SIDE for side in shape):
        raise ValueError(f"'{text}': both sides must be positive multiples of {PIXELS_PER_TOKEN_SIDE}")
    return shape
