"""What a server's configuration wants of a latency table."""

from collections.abc import Iterator

from tetriserve_backend.cli.options import absolute_folder
from tetriserve_backend.cli.table.expectation import Demand, Expectation
from tetriserve_backend.cli.table.findings import Finding, Severity
from tetriserve_backend.cli.table.model_counts import known_counts
from tetriserve_backend.domain import ConfigurationError, LatencyTableError
from tetriserve_backend.executor.machine import surely_without_gpu
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.registry import make_policy, widest_degree
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings, parse_resolution
from tetriserve_profiling.conditions import Conditions

_ONLY_IF_NAMED = "a server takes it only where the setting latency_table names it"


def wanted_shapes(settings: ServerSettings, table: LatencyTable) -> Expectation:
    """What requests may ask for and the scheduler may choose.

    Resolutions are those of `quick_resolutions`; where the configuration leaves them open, the table's. Degrees are
    those that have groups of ranks and that the policy may take. Batches are the powers of two up to `max_batch`: a
    size between them runs only where a table happens to have it.
    """
    served = _served(settings, table)
    texts = [text for one in served for text in one.quick_resolutions or ()]
    return Expectation(
        tuple(dict.fromkeys(map(parse_resolution, texts))) or table.resolutions,
        usable_degrees(widest_degree(settings.scheduler, _world_size(settings, table))),
        usable_degrees(settings.scheduler.max_batch),
        Demand.CONFIGURATION,
        known_counts(table, _path(served[0]) if served else None),
    )


def conflicts(settings: ServerSettings, table: LatencyTable) -> Iterator[Finding]:
    """Where the table is of something else than what is configured, and what could not be served with it."""
    for what, configured, tabled in _facts(settings, table):
        if configured not in (None, tabled):
            text = f"the table has {tabled}, the configuration {configured}: {_ONLY_IF_NAMED}"
            yield Finding(Severity.WARNING, what, text)
    for served in _served(settings, table):
        device = "cpu" if surely_without_gpu(served.model.device) else "cuda"
        conditions = Conditions.of(served.model, settings.executor, device, table.dtype)
        for difference in conditions.differences(table.settings):
            yield Finding(Severity.WARNING, "settings", f"measured with other {difference}: {_ONLY_IF_NAMED}")
    shape = settings.request.height, settings.request.width
    try:
        table.check_resolution(*shape)
    except LatencyTableError as error:
        text = f"a request that names no size is refused; allowed: {error.allowed}"
        yield Finding(Severity.ERROR, f"request {shape[0]}x{shape[1]}", text)
    world_size = _world_size(settings, table)
    try:
        make_policy(settings.scheduler, table.restricted_to(usable_degrees(world_size), world_size), world_size)
    except (ConfigurationError, LatencyTableError) as error:
        yield Finding(Severity.ERROR, f"policy {settings.scheduler.policy}", str(error))


def _facts(settings: ServerSettings, table: LatencyTable) -> Iterator[tuple[str, object, object]]:
    """By name: what is configured, None where that is left open, and what the table has."""
    models = [_path(served) for served in settings.served_models]
    yield "model", None if table.model in models else " and ".join(models), table.model
    yield "world_size", settings.executor.world_size, table.world_size
    for served in _served(settings, table):
        yield "dtype", None if served.model.dtype == "auto" else served.model.dtype, table.dtype


def _served(settings: ServerSettings, table: LatencyTable) -> tuple[ServedModelSettings, ...]:
    """Those of the served models that the table is of, or else the only one."""
    served = settings.served_models
    return tuple(one for one in served if _path(one) == table.model) or (served if len(served) == 1 else ())


def _path(served: ServedModelSettings) -> str:
    return absolute_folder(served.model.path)


def _world_size(settings: ServerSettings, table: LatencyTable) -> int:
    return settings.executor.world_size or table.world_size
