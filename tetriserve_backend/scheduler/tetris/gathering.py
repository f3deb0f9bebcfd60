"""Selective continuous batching (the paper's §5, at any degree): which requests could share their next steps."""

from collections.abc import Sequence
from dataclasses import replace

from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.tetris.planner import Situation, due_s
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows


class Gatherer:
    """Puts requests of one model and resolution together where the table says that this saves GPU-seconds.

    Those with the nearest deadlines first. One that is ready waits for a partner whose segment is about to end,
    if both can then still be in time; a request that is late anyway waits for nobody.

    Args:
        shapes: what requests cost.
        max_batch: most requests of a batch; 1 gathers nothing.
        patience_s: how long a request may wait for a partner.
    """

    def __init__(self, shapes: ShapeRows, max_batch: int, patience_s: float) -> None:
        self._shapes, self._max_batch, self._patience_s = shapes, max_batch, patience_s

    def gather(self, alone: Situation, *, may_wait: bool) -> Situation:
        """The same situation with some of its requests in batches; the very same where none pays.

        Args:
            alone: every request in a batch of its own.
            may_wait: whether anybody may wait for a partner; under overload that spends slack which is needed.
        """
        if self._max_batch == 1 or len(alone.batches) < 2:
            return alone
        patience_s = self._patience_s if may_wait else 0.0
        gathered: list[Batch] = []
        by_shape: dict[tuple[str, int, int], list[Batch]] = {}
        for batch in alone.batches:
            (member,) = batch.members
            if member.runs_alone:
                gathered.append(batch)
            else:
                request = member.request
                by_shape.setdefault((request.model, request.height, request.width), []).append(batch)
        for same in by_shape.values():
            gathered += self._gather_same(same, alone.now_s, patience_s)
        if len(gathered) == len(alone.batches):
            return alone
        # Views are told apart by identity: comparing their values takes longer than all the rest.
        ready_of = {id(batch.members[0]): ready for batch, ready in zip(alone.batches, alone.ready, strict=True)}
        ready = [all(ready_of[id(member)] for member in batch.members) for batch in gathered]
        return replace(alone, batches=gathered, ready=ready)

    def overcounted_gpu_s(self, situation: Situation) -> float:
        """GPU-seconds that a plan counts too many: it runs each batch to its last step, though members leave before."""
        return sum(self._overcounted(batch) for batch in situation.batches if batch.size > 1)

    def _overcounted(self, batch: Batch) -> float:
        alone, together = (
            self._shapes.costs(self._shapes.row(batch.request, size)).efficient[0].gpu_seconds
            for size in (1, batch.size)
        )
        on_their_own = sum(member.remaining_steps - batch.shared_steps for member in batch.members)
        return (batch.remaining_steps - batch.shared_steps) * together - on_their_own * alone

    def _gather_same(self, waiting: list[Batch], now_s: float, patience_s: float) -> list[Batch]:
        sizes = [size for size in self._shapes.batch_sizes(waiting[0].request) if size <= self._max_batch]
        if not sizes or len(waiting) == 1:
            return waiting
        waiting.sort(key=lambda batch: batch.request.deadline_s)
        gathered: list[Batch] = []
        while waiting:
            largest = next(filter(None, (self._first(waiting, size, now_s, patience_s) for size in sizes)), waiting[0])
            gathered.append(largest)
            taken = {id(member) for member in largest.members}
            waiting = [batch for batch in waiting if id(batch.members[0]) not in taken]
        return gathered

    def _first(self, waiting: Sequence[Batch], size: int, now_s: float, patience_s: float) -> Batch | None:
        """The first request with the next ones that can go along and be in time; None if there are not enough."""
        members = waiting[0].members
        for other in waiting[1:]:
            if len(members) == size:
                break
            batch = Batch((*members, *other.members))
            starts_s = [max(member.ready_at_s, now_s) for member in batch.members]
            if max(starts_s) - min(starts_s) <= patience_s and self._is_in_time(batch, size, max(starts_s)):
                members = batch.members
        return Batch(members) if len(members) == size else None

    def _is_in_time(self, batch: Batch, size: int, start_s: float) -> bool:
        """Whether the members can be in time on ranks of their own, at the pace of a batch of `size`."""
        costs = self._shapes.costs(self._shapes.row(batch.request, size))
        return start_s + batch.remaining_steps * costs.fastest.step_s <= due_s(batch, costs, self._shapes.batch_reserve)


def join(alone: Situation, batch: Batch) -> Situation:
    """`alone` with the members of `batch`, each of whom it has in a batch of its own, together."""
    # By identity, as everywhere here.
    members = {id(member) for member in batch.members}
    batches, ready = [batch], [True]
    for other, is_ready in zip(alone.batches, alone.ready, strict=True):
        if id(other.members[0]) in members:
            ready[0] = ready[0] and is_ready
        else:
            batches.append(other)
            ready.append(is_ready)
    return replace(alone, batches=batches, ready=ready)
