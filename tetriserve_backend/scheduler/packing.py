"""Request packing: which options run in the next round so that most requests can still make it (Algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackOption:
    """One way to run a request in the round: `num_steps` steps on `sp_degree` ranks, worth `value`."""

    sp_degree: int
    num_steps: int
    value: int


@dataclass(frozen=True, slots=True)
class PackItem:
    """A request of the round: what it is worth if it does not run, and its options to run."""

    idle_value: int
    options: tuple[PackOption, ...]


def pack_options(items: Sequence[PackItem], num_ranks: int) -> list[PackOption | None]:
    """Choose at most one option per item, at most `num_ranks` ranks in all, for the greatest total value.

    A group knapsack by dynamic programming over used ranks: O(items × options × ranks).

    Returns:
        For each item its option, or None where it does not run.
    """
    best = [0] * (num_ranks + 1)
    choices: list[list[PackOption | None]] = []
    for item in items:
        idle_value = item.idle_value
        row = [value + idle_value for value in best]
        choice: list[PackOption | None] = [None] * (num_ranks + 1)
        for option in item.options:
            degree, value = option.sp_degree, option.value
            for used in range(degree, num_ranks + 1):
                total = best[used - degree] + value
                if total > row[used]:
                    row[used] = total
                    choice[used] = option
        best = row
        choices.append(choice)
    chosen: list[PackOption | None] = []
    used = num_ranks
    for choice in reversed(choices):
        picked = choice[used]
        chosen.append(picked)
        used -= picked.sp_degree if picked is not None else 0
    chosen.reverse()
    return chosen
