"""The rules that every plan must keep."""

from collections.abc import Mapping

from tetriserve_backend.domain import Assignment, SegmentKind
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.engine.world import WorldState


class PlanError(RuntimeError):
    """A policy broke the rules of `Plan`: a bug, never the fault of a request."""


def states_of(assignment: Assignment, requests: Mapping[str, RequestState], world: WorldState) -> list[RequestState]:
    """The states that an assignment is about.

    Raises:
        PlanError: unknown request, wrong stage, no steps, mixed models or resolutions, a batch with a request that
            runs alone, or a rank that is not usable.
    """
    states = []
    for request_id in assignment.request_ids:
        state = requests.get(request_id)
        waits = None if state is None or state.rolling_back else state.sent.next_kind(state.request.num_steps)
        if state is None or waits is not assignment.kind:
            raise PlanError(f"{assignment}: {request_id} is not waiting for {assignment.kind.value}")
        states.append(state)
    if not states or len(set(assignment.request_ids)) != len(states):
        raise PlanError(f"{assignment}: needs distinct requests, at least one")
    if len({(state.request.model, state.request.height, state.request.width) for state in states}) > 1:
        raise PlanError(f"{assignment}: one batch, one model and one resolution")
    if assignment.kind is SegmentKind.DENOISE and len(states) > 1 and any(state.runs_alone for state in states):
        raise PlanError(f"{assignment}: one of the requests is to run alone")
    if (assignment.kind is SegmentKind.DENOISE) != (assignment.num_steps > 0):
        raise PlanError(f"{assignment}: steps go with denoise, and only with it")
    unusable = [rank for rank in assignment.placement.ranks if not world.is_usable(rank)]
    if unusable:
        raise PlanError(f"{assignment}: ranks {unusable} are not usable")
    return states
