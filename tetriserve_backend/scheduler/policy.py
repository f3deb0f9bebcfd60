"""The plug-in point: one small protocol that every policy implements."""

from typing import Protocol

from tetriserve_backend.domain import Plan
from tetriserve_backend.scheduler.view import SchedulerView


class Policy(Protocol):
    """Decides what runs next, where and on how many ranks.

    The engine calls `plan` after every event and at `Plan.wake_at_s`. A policy may keep state of its own
    (such as the end of the current round) but must be deterministic in the sequence of its calls.
    """

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """The segments to send at `now_s` (seconds, monotonic)."""


class ForecastingPolicy(Policy, Protocol):
    """A policy that can also say when a request should be done; the engine asks at arrival, before it plans."""

    def forecast(self, view: SchedulerView, request_id: str, now_s: float) -> float | None:
        """When the request, which `view` shows, should have its image (seconds); None if that is not known.

        Sends nothing; the request may be gone at the next call, if the engine refuses it.
        """
