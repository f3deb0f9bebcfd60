"""Clients of a TetriServe server: blocking and asyncio over gRPC streams, and blocking over HTTP."""

from tetriserve_client.aio import AsyncTetriserveClient
from tetriserve_client.errors import (
    DuplicateRequestError,
    InvalidRequestError,
    RequestCancelledError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerFailureError,
    ServerUnavailableError,
    TetriserveClientError,
    error_from_message,
)
from tetriserve_client.http import HttpTetriserveClient
from tetriserve_client.request import ImageFields, ImageRequest, Size
from tetriserve_client.result import GenerateResult, ImageResult, Progress, SegmentReport
from tetriserve_client.sync import TetriserveClient

__all__ = [
    "AsyncTetriserveClient",
    "DuplicateRequestError",
    "GenerateResult",
    "HttpTetriserveClient",
    "ImageFields",
    "ImageRequest",
    "ImageResult",
    "InvalidRequestError",
    "Progress",
    "RequestCancelledError",
    "RequestRefusedError",
    "RequestTimeoutError",
    "SegmentReport",
    "ServerFailureError",
    "ServerUnavailableError",
    "Size",
    "TetriserveClient",
    "TetriserveClientError",
    "error_from_message",
]
