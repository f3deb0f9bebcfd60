"""Segments and what ranks report of them, for tests of the dispatcher."""

from typing import Any

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.executor.flight import Action, SendSegment
from tetriserve_backend.executor.wire import HostTensor, PartDone, PartFailed, TensorHeader

RESIDENT, CREATE = Source(SourceKind.RESIDENT), Source(SourceKind.CREATE)
ALL = (0, 1, 2, 3)


def denoise(
    segment_id: int, ranks: tuple[int, ...], request_id: str = "r0", first: int = 0, latent: Source = RESIDENT,
    expected_s: float = 0.0, cfg_degree: int = 1,
) -> RunSegment:  # fmt: skip
    request = Request(request_id, 256, 256, 10, arrival_s=0.0, deadline_s=1.0)
    part = SegmentPart(request_id, first, 5)
    segment = Segment(segment_id, SegmentKind.DENOISE, (part,), Placement(ranks), 256, 256, cfg_degree=cfg_degree)
    return RunSegment(segment, (request,), (HandOver(RESIDENT, latent),), expected_s)


def from_host(root: int) -> Source:
    return Source(SourceKind.HOST, root)


def latent_copy(request_id: str, step: int) -> tuple[HostTensor, ...]:
    return (HostTensor(TensorHeader(request_id, "latent", "float32", (1,), step), b"1234"),)


def done(segment_id: int, start_s: float = 1.0, end_s: float = 2.0) -> PartDone:
    return PartDone(segment_id, start_s, end_s, ())


def failed(segment_id: int, blame: Any = "work", group_broken: bool = True) -> PartFailed:
    return PartFailed(segment_id, "boom", blame, group_broken)


def sent_ids(actions: list[Action]) -> list[int]:
    return [action.command.segment.segment_id for action in actions if isinstance(action, SendSegment)]
