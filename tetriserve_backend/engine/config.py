"""Settings of the engine layer."""

from pydantic import BaseModel, ConfigDict, Field

from tetriserve_backend.engine.admission import AdmissionRule


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
        drain_timeout_s: how long running requests may take to finish once the server is asked to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lead_s: float = Field(default=0.02, ge=0.0, le=1.0)
    max_queue_depth: int = Field(default=4, ge=2)
    max_retries: int = Field(default=3, ge=0)
    admission: AdmissionRule = AdmissionRule.BEST_EFFORT
    drain_timeout_s: float = Field(default=30.0, ge=0.0)
