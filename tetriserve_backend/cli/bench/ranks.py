"""What a latency table says about a world of fewer ranks than it is of."""

from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.latency_table import LatencyTable


def on_ranks(table: LatencyTable, ranks: int) -> LatencyTable:
    """The same table without the steps that no group of so many ranks can run, and moves to ranks beyond.

    Raises:
        LatencyTableError: nothing of one image at a time is left.
    """
    document = table.restricted_to(usable_degrees(ranks), ranks).to_dict()
    moves = document.get("hand_over", ())
    document["hand_over"] = [move for move in moves if max(*move["from"], *move["to"]) < ranks]
    return LatencyTable.from_dict({**document, "world_size": min(ranks, table.world_size)}, origin=table.origin)
