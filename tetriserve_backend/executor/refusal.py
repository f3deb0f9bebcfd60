"""Which segments cannot be right on their ranks: xfuser would be silently wrong, or ranks would wait for ever."""

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, Segment, SegmentKind, image_tokens
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.placements import pass_groups, shared_groups, used_groups


def why_refused(segment: Segment, facts: ModelFacts, world_size: int) -> str | None:
    """Why `segment` is refused; None if it can be done. Every rank comes to the same answer."""
    reason = _ranks_problem(segment, world_size) or _size_problem(segment, facts)
    if reason is None and segment.kind is SegmentKind.DENOISE:
        return _degree_problem(segment, facts)
    return reason


def _ranks_problem(segment: Segment, world_size: int) -> str | None:
    if len({len(ranks) for ranks in pass_groups(segment)}) > 1:
        return f"the guidance of an image cannot be split between {len(segment.placement.ranks)} ranks"
    for ranks in sorted(used_groups(segment)):
        if ranks not in shared_groups(world_size):
            return f"there is no group of ranks {ranks} in a world of {world_size}"
    return None


def _size_problem(segment: Segment, facts: ModelFacts) -> str | None:
    height, width = segment.height, segment.width
    if height % PIXELS_PER_TOKEN_SIDE or width % PIXELS_PER_TOKEN_SIDE:
        return f"{height} x {width} pixels are not multiples of {PIXELS_PER_TOKEN_SIDE}"
    if facts.max_side is not None and max(height, width) > facts.max_side:
        return f"{height} x {width} pixels; allowed: up to {facts.max_side} on each side"
    return None


def _degree_problem(segment: Segment, facts: ModelFacts) -> str | None:
    degree = len(pass_groups(segment)[0])
    counts = {**facts.shared_counts, "image tokens": image_tokens(segment.height, segment.width)}
    wrong = [f"{count} {name}" for name, count in counts.items() if count % degree]
    return f"degree {degree} does not divide {' and '.join(wrong)}" if wrong else None
