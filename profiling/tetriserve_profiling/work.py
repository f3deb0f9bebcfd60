"""Work as a profile measures it: where, how large it is, and how files tell it."""

from collections.abc import Callable
from typing import Any, Final

from tetriserve_backend.domain import SegmentKind, image_tokens
from tetriserve_backend.latency_table.work import Work, decode_work, encode_work, step_work

KIND_NAMES: Final = {SegmentKind.DENOISE: "step", SegmentKind.ENCODE: "encode", SegmentKind.DECODE: "decode"}
"""What files call them, in the order of a latency table."""

_MAKERS: Final[dict[str, Callable[..., Work]]] = {"step": step_work, "encode": encode_work, "decode": decode_work}


def ranks_of(work: Work) -> tuple[int, ...]:
    """Where it is measured."""
    return tuple(range(work.degree))


def size_of(work: Work) -> float:
    """What its duration grows with, to a first approximation: prompts, or latent tokens per rank."""
    if work.kind is SegmentKind.ENCODE:
        return work.batch
    return image_tokens(work.height, work.width) * work.batch / work.degree


def work_to_dict(work: Work) -> dict[str, Any]:
    """The work as JSON values, by the keys of a latency table's entry and its kind."""
    keys: dict[str, Any] = {"kind": KIND_NAMES[work.kind]}
    if work.kind is not SegmentKind.ENCODE:
        keys |= {"height": work.height, "width": work.width}
    if work.kind is not SegmentKind.DECODE:
        keys["batch"] = work.batch
    if work.kind is SegmentKind.DENOISE:
        keys |= {"sp": work.sp, "cfg": work.cfg_degree}
    return keys


def work_from_dict(raw: dict[str, Any]) -> Work:
    """Read what `work_to_dict` wrote.

    Raises:
        KeyError, TypeError: it was something else.
    """
    return _MAKERS[raw["kind"]](**{key: value for key, value in raw.items() if key != "kind"})
