"""Compiles the inner loops of planning to machine code, and keeps the result on disk where that can be."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` as machine code, made at its first call: arguments are numbers, numpy arrays and tuples of these.

    The code is kept beside the source, else in a cache of the user (numba's `NUMBA_CACHE_DIR` names another
    folder), else nowhere: then each process compiles for itself.
    """
    try:
        return cast(F, numba.njit(cache=True)(function))
    except RuntimeError:
        return cast(F, numba.njit(function))
