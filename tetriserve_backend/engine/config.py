"""Settings of the engine layer."""

from pydantic import BaseModel, ConfigDict, Field

from tetriserve_backend.engine.admission import AdmissionRule


class DriftSettings(BaseModel):
    """What becomes of times that differ from the latency table's.

    Attributes:
        correction: whether the scheduler plans with a table that is corrected by what was measured.
        half_life: after how many segments half of a correction is new.
        threshold: a warning is given for a shape whose times, and for a rank whose speed, is off by a larger share.
        quarantine_ratio: a rank that takes so many times as long as the others, for ten seconds on end, gets no work
            for five minutes; then it is tried again, and is out twice as long each time that it is still so slow. Only
            where at least half of the work is wide, and where the others do seven times as much as it could: one of
            eight ranks goes, one of four from 2.4 times on, one of two from 7 times on. None keeps all ranks at
            work, as does `correction: false`.
        min_samples: segments that a model must have had before it is corrected, or a shape before it is warned of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    correction: bool = True
    half_life: float = Field(default=16.0, gt=0.0, le=1000.0)
    threshold: float = Field(default=0.1, gt=0.0, le=1.0)
    quarantine_ratio: float | None = Field(default=1.8, gt=1.0)
    min_samples: int = Field(default=8, ge=1, le=25)


class EngineSettings(BaseModel):
    """Frozen settings of the engine.

    Attributes:
        lead_s: how long before its ranks are free a segment may be sent to them, so that they never
            wait for the engine. Longer hides more scheduling latency, shorter sees later arrivals.
        max_queue_depth: segments that may wait or run on one rank at a time; a bound for the case that
            a rank is far slower than the latency table says.
        max_retries: how often a request may be resumed after it lost its ranks before it fails: a request
            that kills every rank it touches must not take the server down with it.
        admission: what happens to a request that should miss its deadline: `best_effort` serves it as well as
            it goes, `reject` answers at once with UNAVAILABLE and the prediction.
        drift: see `DriftSettings`.
        drain_timeout_s: how long running requests may take to finish once the server is asked to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lead_s: float = Field(default=0.02, ge=0.0, le=1.0)
    max_queue_depth: int = Field(default=4, ge=2)
    max_retries: int = Field(default=3, ge=0)
    admission: AdmissionRule = AdmissionRule.BEST_EFFORT
    drift: DriftSettings = DriftSettings()
    drain_timeout_s: float = Field(default=30.0, ge=0.0)
