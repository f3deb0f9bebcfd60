"""What it costs a request to go on elsewhere."""

from tetriserve_backend.latency_table.document import TableDocument


class Moves:
    """Seconds of each profiled move beyond a dispatch; moves to ranks that have it all are none."""

    def __init__(self, document: TableDocument) -> None:
        # By whether it was from other ranks, and by degree.
        self._seconds: dict[bool, dict[int, list[float]]] = {}
        for move in document.hand_over:
            before, after = set(move.before), set(move.after)
            if not after <= before:
                beyond_s = max(0.0, move.between_seconds - document.dispatch_seconds)
                self._seconds.setdefault(not before & after, {}).setdefault(len(after), []).append(beyond_s)

    def mean_s(self, degree: int, *, from_outside: bool) -> float:
        """The mean of the moves to so many ranks, or of all such moves where there are none; 0 without any.

        Args:
            degree: ranks of the segment.
            from_outside: none of them has what the request needs, rather than some.
        """
        moves = self._seconds.get(from_outside, {})
        values = moves.get(degree) or [seconds for many in moves.values() for seconds in many]
        return sum(values) / len(values) if values else 0.0
