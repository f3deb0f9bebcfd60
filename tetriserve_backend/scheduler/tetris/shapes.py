"""What the compiled planning knows of each shape: one row of arrays per shape, added when it is first seen."""

import numpy as np

from tetriserve_backend.domain import Request
from tetriserve_backend.scheduler.costs import CostModel, ShapeCosts
from tetriserve_backend.scheduler.tetris.arrays import ShapeTable, Speeds

_FIRST_ROWS = 8
_DISPATCHES = 16
"""A segment takes as long as so many dispatches at least, if it was not configured to be shorter."""


class ShapeRows:
    """Degrees and steps per second by shape.

    The rate of a degree counts one dispatch per segment, so that plans with many short segments are not
    taken for free.

    Args:
        model: what shapes cost.
        segment_s: how long a segment should take at most.
        batch_reserve: as in `SchedulerSettings`.

    Attributes:
        version: of the costs; what was derived from them is void when it has changed.
    """

    def __init__(self, model: CostModel, segment_s: float, batch_reserve: float = 0.0) -> None:
        self.batch_reserve = batch_reserve
        self._model, self._longest_segment_s, self._segment_s = model, segment_s, segment_s
        self.version = model.version
        self._rows: dict[tuple[str, int, int, int], int] = {}
        self._costs: list[ShapeCosts] = []
        width = model.num_sizes
        self.table = ShapeTable(
            np.zeros((_FIRST_ROWS, width), np.int64), np.zeros((_FIRST_ROWS, width)), np.zeros(_FIRST_ROWS, np.int64)
        )

    def follow_tables(self) -> None:
        """Read the costs of all rows anew if the tables have changed; due before each plan.

        What a model that is gone cost has no reader left.
        """
        if self.version == self._model.version:
            return
        self.version = self._model.version
        for row, (model, height, width, batch) in enumerate(self._rows):
            if self._model.knows(model) and (batch == 1 or batch in self._model.batch_sizes(height, width, model)):
                self._costs[row] = self._model.of_shape(height, width, model, batch)
                self._fill(row)

    def row(self, request: Request, batch: int = 1) -> int:
        """The row of a request's shape in batches of that size, which must be 1 or one of `batch_sizes`."""
        key = (request.model, request.height, request.width, batch)
        row = self._rows.get(key)
        return self._add(key) if row is None else row

    def batch_sizes(self, request: Request) -> tuple[int, ...]:
        """Batches of a request's shape that save GPU-seconds, the most first."""
        return self._model.batch_sizes(request.height, request.width, request.model)

    def costs(self, row: int) -> ShapeCosts:
        """The costs behind a row."""
        return self._costs[row]

    def speeds(self, row: int) -> Speeds:
        """Degrees and rates of a row."""
        width = self.table.num_degrees[row]
        return Speeds(self.table.degrees[row, :width], self.table.rates[row, :width])

    @property
    def longest_usual_s(self) -> float:
        """What segments take at most, unless a single step takes longer."""
        return 1.5 * self._segment_s

    def set_segment_s(self, segment_s: float) -> None:
        """From now on segments should take this long."""
        self._segment_s = segment_s
        for row in range(len(self._costs)):
            self._fill(row)

    def segment_steps(self, costs: ShapeCosts, sp_degree: int, remaining: int) -> int:
        """How many steps a segment takes, about; all that remain if half as many more would do."""
        steps = self._usual_steps(costs, costs.step_s[sp_degree])
        return remaining if remaining <= steps + steps // 2 else steps

    def _usual_steps(self, costs: ShapeCosts, step_s: float) -> int:
        shortest_s = min(_DISPATCHES * costs.dispatch_s, self._longest_segment_s)
        return max(1, int(max(self._segment_s, shortest_s) / step_s + 0.5))

    def _add(self, key: tuple[str, int, int, int]) -> int:
        row = len(self._costs)
        if row == len(self.table.num_degrees):
            self.table = ShapeTable(*(np.concatenate([column, np.zeros_like(column)]) for column in self.table))
        model, height, width, batch = key
        self._costs.append(self._model.of_shape(height, width, model, batch))
        self._rows[key] = row
        self._fill(row)
        return row

    def _fill(self, row: int) -> None:
        costs = self._costs[row]
        efficient = sorted(costs.efficient, key=lambda cost: cost.sp_degree)
        for index, cost in enumerate(efficient):
            steps = self._usual_steps(costs, cost.step_s)
            self.table.degrees[row, index] = cost.sp_degree
            self.table.rates[row, index] = 1.0 / (cost.step_s + costs.dispatch_s / steps)
        self.table.num_degrees[row] = len(efficient)
