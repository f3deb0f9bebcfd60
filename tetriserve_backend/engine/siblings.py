"""The images of one client's request share a prompt, so the encode of one is the encode of all."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tetriserve_backend.domain import Assignment, SegmentKind
from tetriserve_backend.engine.state import RequestState


def encoded_once(planned: Iterable[Assignment], requests: Mapping[str, RequestState]) -> Iterator[Assignment]:
    """`planned`, but an encode serves all of its request's `prompt_group` who wait for theirs, which are left out.

    Policies know nothing of it: to them, each request has an encode of its own. What is planned behind an encode
    that is left out stays, since it waits for the one that serves.
    """
    served: set[str] = set()
    for assignment in planned:
        if assignment.kind is not SegmentKind.ENCODE:
            yield assignment
        elif served.isdisjoint(assignment.request_ids):
            siblings = tuple(_siblings(assignment.request_ids[0], requests))
            served.update(siblings)
            yield replace(assignment, request_ids=assignment.request_ids + siblings) if siblings else assignment


def _siblings(request_id: str, requests: Mapping[str, RequestState]) -> Iterator[str]:
    asking = requests.get(request_id)
    if asking is None or not asking.request.prompt_group or not _can_share(asking):
        return
    for other_id, other in requests.items():
        if other is not asking and other.request.prompt_group == asking.request.prompt_group and _can_share(other):
            yield other_id


def _can_share(state: RequestState) -> bool:
    return not (state.sent.encoded or state.rolling_back or state.failed_together)
