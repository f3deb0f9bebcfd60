"""`tetris`: on every event, plan everything that waits or runs, and start the first pieces of that plan."""

from tetriserve_backend.domain import Plan
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.tetris.planner import Planner
from tetriserve_backend.scheduler.tetris.pod import Pod
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.tetris.warm_up import warm_up
from tetriserve_backend.scheduler.view import SchedulerView


class TetrisPolicy:
    """Plans the whole set anew whenever a segment ends or a request arrives; see `Pod`.

    Args:
        settings: the knobs; see `SchedulerSettings`.
        model: what shapes cost.
        world_size: number of ranks.
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel, world_size: int) -> None:
        shapes = ShapeRows(model, settings.segment_seconds)
        planner = Planner(shapes, settings.plan_tries, settings.plan_candidates)
        self._pod = Pod(range(world_size), shapes, planner, use_idle=settings.elastic_scale_up)
        warm_up()

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""
        return "tetris"

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Decodes that are due, then the first pieces of a fresh plan."""
        return self._pod.plan(view, now_s)
