"""Segments that were sent and not yet reported: in what order, and when each should end."""

import heapq
from collections import deque
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import TypeAlias

from tetriserve_backend.domain import Segment

Resource: TypeAlias = int | str
"""What a segment occupies: a rank (int) or a request (its id). Both do one segment at a time, in order."""


_GRACE_S, _GRACE_SHARE = 0.1, 0.5
"""A segment is late when it takes this much longer than expected: more than noise, less than a timeout."""


@dataclass(slots=True)
class InFlight:
    """A sent segment, how long it should take and when it should end; `started_s` once nothing is before it."""

    segment: Segment
    resources: tuple[Resource, ...]
    duration_s: float
    end_s: float
    started_s: float | None


class SegmentLedger:
    """One queue per rank and per request; a segment runs when it is first in all of its queues.

    Times are expectations from the latency table, corrected whenever a segment ends.
    """

    def __init__(self) -> None:
        self._queues: dict[Resource, deque[int]] = {}
        self._sent: dict[int, InFlight] = {}
        self._changed: set[Resource] = set()
        self._late_from: list[tuple[float, int]] = []
        self._late: set[int] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def depth(self, resource: Resource) -> int:
        """Segments that wait or run on this rank or for this request."""
        queue = self._queues.get(resource)
        return len(queue) if queue else 0

    def holds(self, model: str) -> bool:
        """Whether a segment of that model waits or runs."""
        return any(sent.segment.model == model for sent in self._sent.values())

    def take_changes(self) -> set[Resource]:
        """Ranks and requests whose depth or end may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def free_at_s(self, resource: Resource, now_s: float) -> float:
        """When everything sent to this rank or for this request should be over; `now_s` if nothing is."""
        queue = self._queues.get(resource)
        return self._sent[queue[-1]].end_s if queue else now_s

    def segments_on(self, resource: Resource) -> tuple[Segment, ...]:
        """What waits or runs on this rank or for this request, in order."""
        return tuple(self._sent[segment_id].segment for segment_id in self._queues.get(resource, ()))

    def requests_behind(self, rank: int) -> Set[str]:
        """Whom it hits when nothing sent to this rank comes to be: those in a batch behind one of these as well."""
        return self._hit_by(self._queues.get(rank, ()))

    def requests_behind_segment(self, segment_id: int) -> Set[str]:
        """Whom it hits when a segment does not come to be, its own requests included; nobody if it is unknown."""
        return self._hit_by((segment_id,) if segment_id in self._sent else ())

    def _hit_by(self, segment_ids: Iterable[int]) -> Set[str]:
        lost: set[int] = set()
        segments = list(segment_ids)
        while segments:
            segment_id = segments.pop()
            if segment_id in lost:
                continue
            lost.add(segment_id)
            for part in self._sent[segment_id].segment.parts:
                queue = list(self._queues[part.request_id])
                segments += queue[queue.index(segment_id) + 1 :]
        return {part.request_id for segment_id in lost for part in self._sent[segment_id].segment.parts}

    def late_resources(self, now_s: float) -> Set[Resource]:
        """Ranks and requests with a late segment, or with one that waits behind it: when they end, nobody knows."""
        while self._late_from and self._late_from[0][0] <= now_s:
            _, segment_id = heapq.heappop(self._late_from)
            if segment_id in self._sent:
                self._late.add(segment_id)
        if not self._late:
            return frozenset()
        held: set[Resource] = set()
        segments = list(self._late)
        while segments:
            for resource in self._sent[segments.pop()].resources:
                if resource not in held:
                    held.add(resource)
                    segments.extend(self._queues[resource])
        return held

    def send(self, segment: Segment, duration_s: float, now_s: float) -> None:
        """Append a segment to the queues of its ranks and requests."""
        resources = _resources(segment)
        start_s, at_once = now_s, True
        for resource in resources:
            queue = self._queues.get(resource)
            if queue is None:
                queue = self._queues[resource] = deque()
            else:
                at_once = False
                start_s = max(start_s, self._sent[queue[-1]].end_s)
            queue.append(segment.segment_id)
        sent = InFlight(segment, resources, duration_s, start_s + duration_s, started_s=None)
        self._sent[segment.segment_id] = sent
        if at_once:
            self._begin(sent, now_s)
        self._changed.update(resources)

    def take(self, segment_id: int, now_s: float) -> Segment | None:
        """Remove a segment that ended (well or badly) and expect those behind it anew; None if unknown."""
        sent = self._sent.pop(segment_id, None)
        if sent is None:
            return None
        self._late.discard(segment_id)
        behind: set[int] = set()
        for resource in sent.resources:
            queue = self._queues[resource]
            queue.remove(segment_id)
            if queue:
                behind.update(queue)
            else:
                del self._queues[resource]
        self._changed.update(sent.resources)
        for other_id in sorted(behind):
            self._expect(self._sent[other_id], now_s)
        return sent.segment

    def _expect(self, sent: InFlight, now_s: float) -> None:
        if sent.started_s is not None:
            return
        start_s, first = now_s, True
        for resource in sent.resources:
            queue = self._queues[resource]
            position = queue.index(sent.segment.segment_id)
            if position:
                first = False
                start_s = max(start_s, self._sent[queue[position - 1]].end_s)
        if first:
            self._begin(sent, now_s)
        sent.end_s = start_s + sent.duration_s
        self._changed.update(sent.resources)

    def _begin(self, sent: InFlight, now_s: float) -> None:
        sent.started_s = now_s
        late_from_s = now_s + sent.duration_s * (1.0 + _GRACE_SHARE) + _GRACE_S
        heapq.heappush(self._late_from, (late_from_s, sent.segment.segment_id))


def _resources(segment: Segment) -> tuple[Resource, ...]:
    return (*segment.placement.ranks, *(part.request_id for part in segment.parts))
