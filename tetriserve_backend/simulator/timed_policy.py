"""How long a policy takes to decide."""

import time
from typing import Any

from tetriserve_backend.domain import Plan
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.view import SchedulerView
from tetriserve_backend.simulator.quantiles import QuantileSketch


class TimedPolicy:
    """Another policy, with the wall-clock milliseconds of each of its plans in `decision_ms`, of the last in `last_ms`.

    Sits between core and policy, so that the core needs no clock. Whatever else the policy offers is passed on.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.decision_ms = QuantileSketch()
        self.last_ms = 0.0

    @property
    def name(self) -> str:
        """The name by which configuration chooses the policy."""
        return self._policy.name

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """The policy's plan."""
        started_ns = time.perf_counter_ns()
        plan = self._policy.plan(view, now_s)
        self.last_ms = (time.perf_counter_ns() - started_ns) / 1e6
        self.decision_ms.add(self.last_ms)
        return plan

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._policy, name)
