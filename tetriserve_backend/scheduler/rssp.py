"""RSSP: one fixed degree per resolution, first come first served with backfilling (§6)."""

from tetriserve_backend.domain import ConfigurationError, Request
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel, ShapeCosts
from tetriserve_backend.scheduler.exclusive_groups import ExclusiveGroupPolicy


def make_rssp(settings: SchedulerSettings, costs: CostModel) -> ExclusiveGroupPolicy:
    """Build the policy.

    Raises:
        ConfigurationError: `rssp_degrees` names a degree that its resolution cannot run at.
    """
    chosen: dict[tuple[int, int], int] = {}
    for resolution, degree in (settings.rssp_degrees or {}).items():
        height, width = (int(side) for side in resolution.split("x"))
        allowed = costs.degrees_of(height, width) if costs.has_models else [degree]
        if degree not in allowed:
            raise ConfigurationError(
                f"scheduler.rssp_degrees: {resolution}: {degree} is not a degree of this table and world; "
                f"allowed: {allowed}"
            )
        chosen[height, width] = degree

    def group_size(request: Request) -> int:
        degree = chosen.get((request.height, request.width))
        return degree or widest_efficient_degree(costs.of(request), settings.rssp_min_efficiency)

    return ExclusiveGroupPolicy(
        "rssp",
        costs,
        group_size,
        max_segment_steps=settings.max_segment_steps,
        backfill=True,
        patience_s=settings.late_limit_s,
    )


def widest_efficient_degree(costs: ShapeCosts, min_efficiency: float) -> int:
    """The widest degree whose parallel efficiency T(1) / (k · T(k)) is at least `min_efficiency`.

    A fixed degree has to serve every load, so it should be as fast as it can be without spending GPU-seconds
    that others need. On the 8×H100 table the efficiencies are at most 0.51 for 256² and 512² beyond one GPU;
    0.94 / 0.84 / 0.40 for 1024² and 0.97 / 0.95 / 0.93 for 2048² on 2 / 4 / 8 GPUs. Any bound between 0.84
    and 0.93 gives the paper's choice of 1, 1, 2 and 8.
    """
    single_s = costs.step_s[1]
    return max(degree for degree, step_s in costs.step_s.items() if single_s >= min_efficiency * degree * step_s)
