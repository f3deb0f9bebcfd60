"""Has everything compiled before the first request comes."""

import numpy as np

from tetriserve_backend.scheduler.tetris.arrays import Packing, Requests, ShapeTable, Speeds, Started, make_profile
from tetriserve_backend.scheduler.tetris.kernels import (
    choose,
    copy_profile,
    earliest_end,
    is_free,
    saved_behind,
    take,
    try_place,
)


def warm_up() -> None:
    """Call each kernel that Python calls; takes seconds where no cache holds its code, else nothing to speak of."""
    table = ShapeTable(np.ones((1, 1), np.int64), np.ones((1, 1)), np.ones(1, np.int64))
    start, left = make_profile(4), make_profile(32)
    start.free[0], start.size[0] = 1, 1
    zero, due_s = np.zeros(1, np.int64), np.full(1, 9.0)
    requests = Requests(zero, np.zeros(1, np.bool_), np.zeros(1), due_s, np.ones(1), zero, zero + 1, zero.copy())
    packing = Packing(np.zeros(1), zero.copy(), np.zeros(1), np.zeros(1), left)
    choose(requests, table, start, packing, (2, 1))
    copy_profile(start, left)
    saved_behind(requests, table, start, packing, Started(zero[:0], zero[:0], zero[:0], due_s[:0]))
    take(left, 1, 2.0, 3.0)
    is_free(left, 1, 9.0)
    speeds = Speeds(table.degrees[0], table.rates[0])
    try_place(left, make_profile(32), 0.0, 9.0, (1.0, speeds))
    earliest_end(left, 0.0, 1.0, speeds)
