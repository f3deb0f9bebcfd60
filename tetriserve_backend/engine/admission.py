"""What a new request is told: when it should be done, or that it cannot be in time."""

import math
from enum import Enum

from tetriserve_backend.domain import Request, UnavailableError
from tetriserve_backend.engine.prediction import predict_finish_s
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.view import SchedulerView


class AdmissionRule(str, Enum):
    """What happens to a request that should miss its deadline: served as well as it goes, or refused at once."""

    BEST_EFFORT = "best_effort"
    REJECT = "reject"


class Admission:
    """Asks the policy for a forecast, if it makes any; else first come, first served is assumed.

    Args:
        policy: may have a `forecast` (see `ForecastingPolicy`).
        tables: what work costs.
        rule: what happens to requests that should be late.
    """

    def __init__(self, policy: Policy, tables: LatencyTables, rule: AdmissionRule) -> None:
        self._forecast = getattr(policy, "forecast", None)
        self._tables, self._rule = tables, rule

    def predict_finish_s(self, view: SchedulerView, request: Request, ahead_gpu_seconds: float, now_s: float) -> float:
        """When `request`, which `view` shows already, should have its image (seconds, monotonic).

        Args:
            view: what the policy sees.
            request: has just arrived.
            ahead_gpu_seconds: that all other requests still need, at least.
            now_s: the time of its arrival.
        """
        forecast_s = self._forecast(view, request.request_id, now_s) if self._forecast and view.ranks else None
        if forecast_s is not None and math.isfinite(forecast_s):
            return float(forecast_s)
        return predict_finish_s(self._tables.of(request.model), request, ahead_gpu_seconds, len(view.ranks), now_s)

    def refusal(self, request: Request, predicted_finish_s: float) -> UnavailableError | None:
        """Why the request is not taken; None if it is."""
        if self._rule is AdmissionRule.BEST_EFFORT or predicted_finish_s <= request.deadline_s:
            return None
        return UnavailableError(
            f"the deadline cannot be met: the image is expected {predicted_finish_s - request.arrival_s:.3f} s after"
            f" the request's arrival, and was wanted within {request.slo_s:.3f} s; try again later or allow more time"
        )
