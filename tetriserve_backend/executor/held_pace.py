"""Ranks that are never faster than a latency table says."""

import time

from tetriserve_backend.domain import Segment
from tetriserve_backend.latency_table import LatencyTable, work_of


class HeldPace:
    """Lets one segment take as long as a table says, where its work is done sooner.

    What GPUs have in locked clocks: the work is done all the same, and what is left of its time is waited for, so that
    a machine whose speed wanders repeats itself. A step that took too long is made up for by those behind it.

    Args:
        table: how long work takes.
        segment: whose work.
        begun_s: when the last of its ranks began, on the monotonic clock, which ranks of one machine share: a rank that
            waits for others in its first step has not begun.

    Raises:
        LatencyTableError: the table lacks the shape.
    """

    def __init__(self, table: LatencyTable, segment: Segment, begun_s: float) -> None:
        self._each_s, self._begun_s = table.seconds(work_of(segment)), begun_s

    def wait_for(self, times: int) -> None:
        """Until the segment's work may have been done so many times."""
        left_s = self._begun_s + times * self._each_s - time.monotonic()
        if left_s > 0.0:
            time.sleep(left_s)
