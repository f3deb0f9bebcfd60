"""What makes a live benchmark fail that ran to its end."""

from collections.abc import Iterator, Sequence

from tetriserve_backend.cli.bench.totals import LiveResult
from tetriserve_profiling.told import first_of

_MOST_TOLD = 3


def failures_of(results: Sequence[LiveResult]) -> Iterator[str]:
    """Why runs are worth nothing, once each: nobody got an image, or the timeline contradicts itself or the trace."""
    for result in results:
        if result.live.requests and len(result.errors) >= result.live.requests:
            yield f"{result.run.name}: no request got an image, the first since: {result.errors[0]}"
        elif result.problems:
            yield f"{result.run.name}: its timeline is wrong: {told_briefly(result.problems)}"


def told_briefly(texts: Sequence[str]) -> str:
    """The first few, and how many more."""
    return "; ".join(first_of(texts, _MOST_TOLD))
