"""`tetris`: on every event, plan everything that waits or runs, and start the first pieces of that plan."""

from tetriserve_backend.domain import Plan
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.tetris.fleet import Fleet
from tetriserve_backend.scheduler.tetris.gathering import Gatherer
from tetriserve_backend.scheduler.tetris.planner import Planner
from tetriserve_backend.scheduler.tetris.pod import Pod
from tetriserve_backend.scheduler.tetris.segment_length import SegmentLength
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.tetris.warm_up import warm_up
from tetriserve_backend.scheduler.view import SchedulerView


class TetrisPolicy:
    """Plans the whole set anew whenever a segment ends or a request arrives (`Pod`).

    A world of more ranks than `pod_size` is planned pod by pod (`Fleet`).

    Args:
        settings: the knobs; see `SchedulerSettings`.
        model: what shapes cost.
        world_size: number of ranks.
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel, world_size: int) -> None:
        pod_size = min(settings.pod_size, world_size)
        shapes = self._shapes = ShapeRows(model, settings.segment_seconds, settings.batch_reserve)
        self._segment_length = SegmentLength(settings.segment_seconds, shapes)
        gatherer = Gatherer(shapes, settings.max_batch, settings.batch_patience_s)
        use_idle = settings.elastic_scale_up

        def make_planner(num_ranks: int) -> Planner:
            return Planner(shapes, settings.plan_tries, settings.plan_candidates, num_ranks)

        self._pods: Pod | Fleet
        if world_size <= pod_size:
            self._pods = Pod(range(world_size), shapes, make_planner(world_size), gatherer, use_idle=use_idle)
        else:
            self._pods = Fleet(world_size, pod_size, shapes, make_planner, gatherer, use_idle=use_idle)
        warm_up()

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""
        return "tetris"

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Decodes that are due, then the first pieces of a fresh plan."""
        self._shapes.follow_tables()
        if self._segment_length.note(view):
            self._shapes.set_segment_s(self._segment_length.seconds)
        return self._pods.plan(view, now_s)

    def forecast(self, view: SchedulerView, request_id: str, now_s: float) -> float | None:
        """When a request should have its image, if no other comes; None if the view does not show it."""
        self._shapes.follow_tables()
        return self._pods.forecast(view, request_id, now_s)
