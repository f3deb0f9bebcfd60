"""Whether ranks that hold a pace were able to, whatever else the machine did."""

from collections.abc import Iterable, Sequence

from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace, TimedSegment

_MOST_OVER = 1.03
"""Over the time that a held pace leaves; where nothing comes in between it is 0.99 to 1.02."""


def kept_pace(segments: Iterable[TimedSegment], pace: LatencyTable) -> bool:
    """Whether segments took as long as `pace` says."""
    return Pace(segments, pace).overall <= _MOST_OVER


def behind_pace(table: LatencyTable, pace: LatencyTable) -> Sequence[str]:
    """The entries of a measured table that took longer than `pace` says, in words; none if it was kept."""
    return [
        f"{work} ({table.seconds(work) / pace.seconds(work):.2f} times)"
        for work in table.works
        if table.seconds(work) > _MOST_OVER * pace.seconds(work)
    ]
