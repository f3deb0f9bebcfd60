"""What a latency table says about a world of fewer ranks than it is of."""

from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.latency_table import LatencyTable


def on_ranks(table: LatencyTable, ranks: int) -> LatencyTable:
    """The same table without the steps that no group of so many ranks can run, and moves to ranks beyond.

    Raises:
        LatencyTableError: nothing of one image at a time is left.
    """
    degrees = usable_degrees(ranks)
    document = table.restricted_to(degrees).to_dict()
    # A split of the guidance takes twice the ranks of its sequence-parallel degree.
    document["step"] = [step for step in document["step"] if step["sp"] * step.get("cfg", 1) in degrees]
    moves = document.get("hand_over", ())
    document["hand_over"] = [move for move in moves if max(*move["from"], *move["to"]) < ranks]
    return LatencyTable.from_dict({**document, "world_size": min(ranks, table.world_size)}, origin=table.origin)
