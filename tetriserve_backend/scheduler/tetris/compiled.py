"""Compiles the inner loops of planning to machine code on first use, and keeps the result on disk."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` as machine code: arguments must be numbers and numpy arrays of fixed types."""
    return cast(F, numba.njit(cache=True)(function))
