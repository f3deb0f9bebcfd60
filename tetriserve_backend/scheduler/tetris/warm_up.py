"""Has everything compiled before the first request comes."""

import numpy as np

from tetriserve_backend.scheduler.tetris.arrays import (
    NUM_FACTS,
    NUM_FLOATS,
    NUM_INTS,
    ShapeTable,
    Speeds,
    Started,
    make_profile,
)
from tetriserve_backend.scheduler.tetris.kernels import (
    copy_profile,
    earliest_end,
    fill_profile,
    leaves_free,
    plan_batches,
    saved_behind,
    take_now,
    try_place,
)


def warm_up() -> None:
    """Call each kernel that Python calls; takes seconds where no cache holds its code, else nothing to speak of."""
    table = ShapeTable(np.ones((1, 1), np.int64), np.ones((1, 1)), np.ones(1, np.int64))
    start, left = make_profile(4), make_profile(32)
    none, places = np.zeros(0, np.int64), np.zeros(1, np.int64)
    facts = np.zeros((1, NUM_FACTS))
    facts[0] = 0.0, 9.0, 1.0, 0.0, 1.0
    plan = np.empty((NUM_FLOATS, 1)), np.empty((NUM_INTS, 1), np.int64)
    bare, scratch = (*left,), (*make_profile(32),)
    plan_batches((facts, places), (*table,), (1, np.zeros(0), 0.0), (2, 1), ((*start,), bare, *plan))
    saved_behind(plan, table, start, Started(none, none, none, np.zeros(0)))
    fill_profile(left, 1, np.zeros(0), 0.0)
    copy_profile(start, left)
    take_now(bare, 1, 3.0)
    leaves_free(bare, 1, 9.0)
    try_place(bare, scratch, 0.0, 9.0, (1.0, table.degrees[0], table.rates[0]))
    earliest_end(left, 0.0, 1.0, Speeds(table.degrees[0], table.rates[0]))
