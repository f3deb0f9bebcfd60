"""Policies by the names that configuration knows them by."""

import re

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.exclusive_groups import ExclusiveGroupPolicy
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.rounds import RoundPolicy
from tetriserve_backend.scheduler.rssp import make_rssp

_NAMES = ("tetris", "tetriserve", "rssp", "fcfs-optimal-shape")
_FIXED = re.compile(r"fixed-sp([1-9][0-9]*)")


def check_policy_name(name: str, world_size: int | None = None) -> None:
    """Refuse what no latency table could make a policy of, before there is one.

    Args:
        name: of the policy.
        world_size: ranks, where it is known already.

    Raises:
        ConfigurationError: lists what is allowed.
    """
    fixed = _FIXED.fullmatch(name)
    size = int(fixed[1]) if fixed else 0
    is_group = size > 0 and size & (size - 1) == 0 and size <= (world_size or size)
    if name not in _NAMES and not is_group:
        widest = f" up to {world_size}" if world_size else ""
        raise ConfigurationError(
            f"scheduler.policy: unknown policy {name!r}; allowed: {', '.join(_NAMES)}, "
            f"fixed-sp<k> with k a power of two{widest}"
        )


def widest_degree(settings: SchedulerSettings, world_size: int) -> int:
    """The most ranks that the policy may let share a step, whatever the latency table has.

    Args:
        settings: with the name of a policy that there is.
        world_size: ranks.
    """
    fixed = _FIXED.fullmatch(settings.policy)
    widest = int(fixed[1]) if fixed else settings.pod_size if settings.policy == "tetris" else world_size
    return min(widest, world_size)


def make_policy(settings: SchedulerSettings, given: LatencyTable | LatencyTables, world_size: int) -> Policy:
    """The policy that `settings.policy` names, for some tables and world; it follows the tables as they change.

    Without any table yet, what only a table can tell is not checked.

    Raises:
        ConfigurationError: the name is unknown, or a setting does not go with table and world; the message
            lists what is allowed.
        LatencyTableError: a resolution of a table cannot run on one rank.
    """
    tables = as_tables(given)
    costs = CostModel(tables, world_size)
    if settings.policy == "tetriserve":
        return RoundPolicy(settings, costs)
    if settings.policy == "tetris":
        # Brings a compiler with it, which no other policy should have to load.
        from tetriserve_backend.scheduler.tetris.policy import TetrisPolicy  # noqa: PLC0415

        return TetrisPolicy(settings, CostModel(tables, min(world_size, settings.pod_size)), world_size)
    if settings.policy == "rssp":
        return make_rssp(settings, costs)
    pieces = settings.max_segment_steps
    if settings.policy == "fcfs-optimal-shape":
        return ExclusiveGroupPolicy(
            settings.policy,
            costs,
            lambda request: costs.of(request).fastest.sp_degree,
            max_segment_steps=pieces,
            backfill=False,
        )
    fixed = _FIXED.fullmatch(settings.policy)
    profiled = {degree for shape in costs.profiled() for degree in shape.step_s}
    degrees = sorted(profiled) if costs.has_models else list(costs.sizes)
    if fixed and int(fixed[1]) in degrees:
        size = int(fixed[1])
        return ExclusiveGroupPolicy(
            settings.policy, costs, lambda request: size, max_segment_steps=pieces, backfill=False
        )
    allowed = [*_NAMES, *(f"fixed-sp{degree}" for degree in degrees)]
    raise ConfigurationError(f"scheduler.policy: unknown policy {settings.policy!r}; allowed: {', '.join(allowed)}")
