"""The arrays that compiled planning works on, and what their entries mean."""

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

NUM_FACTS = 5
"""What is known of a batch before it is planned: when it is ready and due (seconds of the clock), how many steps it
needs, its row in the `ShapeTable`, and how many requests it stands for."""
NUM_FLOATS, NUM_INTS = 6, 6
"""Rows of the two arrays that hold `Requests` and `Packing` of a plan."""


class Profile(NamedTuple):
    """`free[i]` ranks are free from `times[i]` (seconds, ascending) until `times[i + 1]`; the last interval has no end.

    The first `size[0]` entries count. Every split needs room for one more.
    """

    times: Floats
    free: Ints
    size: Ints


def make_profile(room: int) -> Profile:
    """An empty profile with room for that many intervals."""
    return Profile(np.zeros(room), np.zeros(room, np.int64), np.zeros(1, np.int64))


Bare: TypeAlias = tuple[Floats, Ints, Ints]
"""A `Profile` as numba takes it from Python at once: looking into a named tuple takes it a microsecond or two."""


class Speeds(NamedTuple):
    """The usable degrees of one shape, ascending, and their steps per second, ascending too."""

    degrees: Ints
    rates: Floats


class ShapeTable(NamedTuple):
    """One row per shape: its `Speeds` in the first `num_degrees` columns."""

    degrees: Ints
    rates: Floats
    num_degrees: Ints


class Requests(NamedTuple):
    """What is to be packed: one entry per request, and the order in which they are placed.

    Attributes:
        order: indices of requests.
        left_out: 1 for requests that get nothing, else 0.
        ready_s, due_s: between these moments a request may run.
        steps: that it needs (> 0).
        shapes: its row in the `ShapeTable`.
        weights: how many requests an entry stands for: more than one in a batch.
        levels: how many of its degrees it uses at once, as wide as is free; 0: as narrow as its deadline allows.
    """

    order: Ints
    left_out: Ints
    ready_s: Floats
    due_s: Floats
    steps: Floats
    shapes: Ints
    weights: Ints
    levels: Ints


class Started(NamedTuple):
    """Segments that start at the beginning of a plan: which request, on how many ranks, how many steps, until when."""

    indices: Ints
    degrees: Ints
    num_steps: Ints
    ends_s: Floats


class Packing(NamedTuple):
    """The result: one entry per request, and what they leave.

    Attributes:
        gpu_seconds: what it costs; -1 if it is not saved.
        first_degree: its degree at the moment it is ready; 0 if it waits then.
        until_s: when it leaves its first degree.
        end_s: when its last step ends; inf if it is not saved.
        left: what stays free.
    """

    gpu_seconds: Floats
    first_degree: Ints
    until_s: Floats
    end_s: Floats
    left: Profile


class Marks(NamedTuple):
    """What is free before each `stride`-th request of a packing, from the first on: one row per mark (`Profile`)."""

    stride: int
    times: Floats
    free: Ints
    sizes: Ints
