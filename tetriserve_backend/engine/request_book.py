"""The requests between arrival and answer, in step with what the policy sees of them and the work that they need."""

import math
from collections.abc import Mapping

from tetriserve_backend.domain import Request, Segment, SegmentPart
from tetriserve_backend.engine.commands import SegmentRecord
from tetriserve_backend.engine.prediction import Backlog
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.engine.views import ViewKeeper
from tetriserve_backend.latency_table import LatencyTables


class RequestBook:
    """Owns the states: requests enter, go on, roll back and leave here.

    Attributes:
        states: by request id, in order of arrival; to be read only.

    Args:
        tables: what requests cost.
        views: what the policy sees.
    """

    def __init__(self, tables: LatencyTables, views: ViewKeeper) -> None:
        self._views, self._backlog = views, Backlog(tables)
        self._states: dict[str, RequestState] = {}
        self.states: Mapping[str, RequestState] = self._states

    @property
    def gpu_seconds(self) -> float:
        """What all requests still need, at least."""
        return self._backlog.gpu_seconds

    def enter(self, request: Request, now_s: float) -> RequestState:
        """A request has arrived."""
        state = self._states[request.request_id] = RequestState(request, math.inf)
        self._views.show(state, now_s)
        self._backlog.update(state)
        return state

    def leave(self, request_id: str) -> RequestState:
        """A request has been answered; it must be here."""
        self._backlog.remove(request_id)
        self._views.hide(request_id)
        return self._states.pop(request_id)

    def of_model(self, model: str) -> list[str]:
        """Ids of the requests for a model."""
        return [request_id for request_id, state in self._states.items() if state.request.model == model]

    def go_on(self, state: RequestState, segment: Segment, part: SegmentPart, span_s: tuple[float, float]) -> None:
        """A request's part of a segment has finished; `span_s` is from when to when the ranks worked at it."""
        state.done = state.done.after(segment.kind, part.num_steps)
        state.records.append(
            SegmentRecord(
                segment.kind.value,
                segment.placement.ranks,
                part.first_step,
                part.num_steps,
                *span_s,
                segment.batch_size,
                segment.cfg_degree,
            )
        )
        self._backlog.update(state)

    def begin_roll_back(self, request_id: str, *, lost: bool = True) -> None:
        """Plan no more of a request, if it is here, until all that was sent of it is reported.

        Counts as one retry if it was `lost` with its ranks.
        """
        state = self._states.get(request_id)
        if state is not None and not state.rolling_back:
            state.rolling_back = True
            state.retries += lost
            self._views.hide(request_id)

    def roll_back(self, state: RequestState, now_s: float) -> None:
        """All that was sent of the request is reported: it goes on from its last host copies."""
        state.roll_back()
        self._views.show_again(self._states.values(), now_s)
