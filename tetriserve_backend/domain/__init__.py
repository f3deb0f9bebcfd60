"""The words of the field as values: what every other layer speaks in."""

from tetriserve_backend.domain.errors import (
    ClientError,
    ConfigurationError,
    DuplicateRequestError,
    ErrorCode,
    InvalidRequestError,
    LatencyTableError,
    RequestCancelledError,
    RequestFailedError,
    ServerError,
    TetriserveError,
    UnavailableError,
)
from tetriserve_backend.domain.placement import Placement
from tetriserve_backend.domain.plan import Assignment, Plan
from tetriserve_backend.domain.request import Request
from tetriserve_backend.domain.resolution import PIXELS_PER_TOKEN_SIDE, image_tokens
from tetriserve_backend.domain.segment import Segment, SegmentKind, SegmentPart

__all__ = [
    "PIXELS_PER_TOKEN_SIDE",
    "Assignment",
    "ClientError",
    "ConfigurationError",
    "DuplicateRequestError",
    "ErrorCode",
    "InvalidRequestError",
    "LatencyTableError",
    "Placement",
    "Plan",
    "Request",
    "RequestCancelledError",
    "RequestFailedError",
    "Segment",
    "SegmentKind",
    "SegmentPart",
    "ServerError",
    "TetriserveError",
    "UnavailableError",
    "image_tokens",
]
