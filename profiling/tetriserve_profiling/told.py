"""Long lists in errors."""

from collections.abc import Sequence


def first_of(texts: Sequence[str], most: int) -> list[str]:
    """The first `most` of them, and how many more there are, if there are."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return [*texts[:most], *more]
