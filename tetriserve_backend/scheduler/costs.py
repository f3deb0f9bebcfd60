"""What each shape costs at each degree that a policy may use, read once from the latency table."""

from dataclasses import dataclass

from tetriserve_backend.domain import ConfigurationError, Request
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.groups import aligned_groups
from tetriserve_backend.scheduler.view import RequestView


@dataclass(frozen=True, slots=True)
class DegreeCost:
    """One step at one degree: its seconds, and the GPU-seconds that it takes from the world."""

    sp_degree: int
    step_s: float
    gpu_seconds: float


@dataclass(frozen=True, slots=True)
class ShapeCosts:
    """What one shape costs.

    Attributes:
        step_s: seconds per step by usable degree, ascending by degree; degree 1 is always there, but for batches.
        efficient: the usable degrees that no other one beats in time and GPU-seconds at once, cheapest
            (and slowest) first. Nothing is lost by planning with these alone: each step at a beaten
            degree can be exchanged for one at the degree that beats it.
        fastest: the last of `efficient`.
        decode_s: seconds of the VAE, dispatch included.
        encode_s: seconds of the text encoders, dispatch included.
        dispatch_s: seconds that sending one segment costs.
    """

    step_s: dict[int, float]
    efficient: tuple[DegreeCost, ...]
    decode_s: float
    encode_s: float
    dispatch_s: float

    @property
    def fastest(self) -> DegreeCost:
        """The degree with the shortest step; the narrowest of equals."""
        return self.efficient[-1]

    def widest_within(self, size: int) -> int:
        """The largest usable degree that is at most `size` (≥ 1)."""
        return max(degree for degree in self.step_s if degree <= size)

    def chain_s(self, request: RequestView, sp_degree: int, num_steps: int) -> float:
        """Seconds of the segments that `stages.chain` makes of `num_steps` steps, dispatch included."""
        return self.batch_chain_s(Batch((request,)), sp_degree, num_steps)

    def batch_chain_s(self, batch: Batch, sp_degree: int, num_steps: int) -> float:
        """Seconds of the segments that `stages.batch_chain` makes; for the costs of batches of that size."""
        encode_rounds = -(-batch.num_encodes // sp_degree)
        denoise_s = num_steps * self.step_s[sp_degree] + self.dispatch_s if num_steps else 0.0
        num_done = sum(member.remaining_steps == num_steps for member in batch.members)
        return encode_rounds * self.encode_s + denoise_s + -(-num_done // sp_degree) * self.decode_s


class CostModel:
    """`ShapeCosts` of any shape, cached.

    Usable degrees are those of the table that divide the shape's tokens (`LatencyTable.degrees`) and are
    the size of an aligned group of the world.

    Costs follow the tables as these change (`LatencyTables.version`).

    Raises:
        ConfigurationError: the world has no rank.
        LatencyTableError: a profiled resolution cannot run on one rank, the fallback that keeps every
            request servable whatever ranks are left.
    """

    def __init__(self, tables: LatencyTable | LatencyTables, world_size: int) -> None:
        if world_size < 1:
            raise ConfigurationError(f"world size: expected at least 1, got {world_size}")
        self._tables = as_tables(tables)
        self._sizes = tuple(aligned_groups(world_size))
        self._shapes: dict[tuple[str, int, int, int], ShapeCosts] = {}
        self._batch_sizes: dict[tuple[str, int, int], tuple[int, ...]] = {}
        self._version = self._tables.version
        for table in self._tables:
            table.check_one_rank()

    @property
    def version(self) -> int:
        """Counts the changes of the tables; whoever keeps costs must ask for them anew when it has changed."""
        return self._tables.version

    def knows(self, model: str) -> bool:
        """Whether requests of that model can be planned."""
        return self._tables.has(model)

    @property
    def has_models(self) -> bool:
        """Whether there is any table yet."""
        return bool(self._tables.models)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the world's groups, ascending."""
        return self._sizes

    @property
    def num_sizes(self) -> int:
        """How many sizes of group the world has."""
        return len(self._sizes)

    def of(self, request: Request) -> ShapeCosts:
        """The costs of a request's shape."""
        return self.of_shape(request.height, request.width, request.model)

    def of_shape(self, height: int, width: int, model: str = "", batch: int = 1) -> ShapeCosts:
        """The costs of `batch` images of `height` × `width` pixels in one forward pass.

        Args:
            height: pixels.
            width: pixels.
            model: whose images.
            batch: 1, or one of `batch_sizes`.

        Raises:
            LatencyTableError: no such model, or the shape lies outside its profiled range.
        """
        self._follow_tables()
        key = (model, height, width, batch)
        costs = self._shapes.get(key)
        if costs is None:
            costs = self._shapes[key] = self._read(self._tables.of(model), height, width, batch)
        return costs

    def batch_sizes(self, height: int, width: int, model: str = "") -> tuple[int, ...]:
        """Batches of at least two that take fewer GPU-seconds per image than one image alone can, cheapest first.

        Only what the table has: profiling leaves out what does not fit in memory.

        Raises:
            LatencyTableError: as `of_shape`.
        """
        self._follow_tables()
        key = (model, height, width)
        sizes = self._batch_sizes.get(key)
        if sizes is None:
            table, alone = self._tables.of(model), self.of_shape(height, width, model)
            profiled = {batch for degree in alone.step_s for batch in table.batches(height, width, degree)}
            share = {
                batch: self.of_shape(height, width, model, batch).efficient[0].gpu_seconds / batch
                for batch in sorted(profiled - {1})
            }
            worth = [batch for batch, gpu_seconds in share.items() if gpu_seconds < alone.efficient[0].gpu_seconds]
            sizes = self._batch_sizes[key] = tuple(sorted(worth, key=lambda batch: (round(share[batch], 9), batch)))
        return sizes

    def batch_sizes_at(self, sp_degree: int, height: int, width: int, model: str = "") -> tuple[int, ...]:
        """Batches of at least two that take less time per image than one alone, all at one degree; shortest first.

        Raises:
            LatencyTableError: as `of_shape`.
        """
        table, alone_s = self._tables.of(model), self.of_shape(height, width, model).step_s[sp_degree]
        share_s = {
            batch: self.of_shape(height, width, model, batch).step_s[sp_degree] / batch
            for batch in table.batches(height, width, sp_degree)
            if batch > 1
        }
        worth = [batch for batch, seconds in share_s.items() if seconds < alone_s]
        return tuple(sorted(worth, key=lambda batch: (share_s[batch], batch)))

    def _follow_tables(self) -> None:
        if self._version != self._tables.version:
            self._version = self._tables.version
            self._shapes.clear()
            self._batch_sizes.clear()

    def degrees_of(self, height: int, width: int) -> list[int]:
        """The usable degrees of a shape, of whatever model, ascending.

        Raises:
            LatencyTableError: the shape lies outside the profiled range of a model.
        """
        return sorted(
            {degree for model in self._tables.models for degree in self.of_shape(height, width, model).step_s}
        )

    def profiled(self) -> list[ShapeCosts]:
        """The costs of all profiled resolutions of all models."""
        return [
            self.of_shape(*shape, model)
            for model in self._tables.models
            for shape in self._tables.of(model).resolutions
        ]

    def _read(self, table: LatencyTable, height: int, width: int, batch: int) -> ShapeCosts:
        allowed = {degree for degree in table.degrees(height, width) if batch in table.batches(height, width, degree)}
        step_s = {size: table.step_s(height, width, size, batch) for size in self._sizes if size in allowed}
        return ShapeCosts(
            step_s=step_s,
            efficient=_efficient(step_s),
            decode_s=table.decode_s(height, width) + table.dispatch_s,
            encode_s=table.encode_s() + table.dispatch_s,
            dispatch_s=table.dispatch_s,
        )


def _efficient(step_s: dict[int, float]) -> tuple[DegreeCost, ...]:
    costs = sorted(
        (DegreeCost(degree, seconds, degree * seconds) for degree, seconds in step_s.items()),
        key=lambda cost: (cost.gpu_seconds, cost.step_s, cost.sp_degree),
    )
    kept: list[DegreeCost] = []
    for cost in costs:
        if not kept or cost.step_s < kept[-1].step_s:
            kept.append(cost)
    return tuple(kept)
