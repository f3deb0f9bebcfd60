"""One error tree in two families: the client's fault and ours.

    TetriserveError
    ├── ClientError                the request must change
    │   ├── InvalidRequestError    a field is missing, of the wrong kind or out of range
    │   ├── DuplicateRequestError  a request of that id is already being served
    │   └── RequestCancelledError  the client asked to stop
    └── ServerError                the request was fine
        ├── UnavailableError       not now: overload, shutdown; another try may work
        ├── RequestFailedError     the work on this one request failed
        ├── ConfigurationError     the server was set up wrongly
        └── LatencyTableError      a latency table is missing, broken or too small

Each error carries an `ErrorCode`; `triton_adapter` is the only place that maps codes to Triton's.
"""

from enum import Enum
from typing import ClassVar


class ErrorCode(str, Enum):
    """What kind of error this is, by the names that Triton and gRPC use."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class TetriserveError(Exception):
    """Base of every error that this project raises on purpose."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL


class ClientError(TetriserveError):
    """The request must change before it can be served."""

    code = ErrorCode.INVALID_ARGUMENT


class InvalidRequestError(ClientError):
    """A field of a request is wrong.

    Args:
        field: the public name of the field.
        problem: what was wrong with it, with the offending value.
        allowed: what would have been right.
    """

    def __init__(self, field: str, problem: str, allowed: str) -> None:
        self.field, self.problem, self.allowed = field, problem, allowed
        super().__init__(f"{field}: {problem}; allowed: {allowed}")


class DuplicateRequestError(ClientError):
    """A request with this id is already being served."""

    code = ErrorCode.ALREADY_EXISTS

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request id: '{request_id}' is already being served; allowed: an id not in use, or none")


class RequestCancelledError(ClientError):
    """The client asked to stop this request."""

    code = ErrorCode.CANCELLED


class ServerError(TetriserveError):
    """The request was fine, the server could not serve it."""


class UnavailableError(ServerError):
    """The server cannot serve this request now; another try may work."""

    code = ErrorCode.UNAVAILABLE


class RequestFailedError(ServerError):
    """The work on one request failed, and trying again would fail again."""


class ConfigurationError(ServerError):
    """The server was configured wrongly; the message names the setting and what is allowed."""


class LatencyTableError(ServerError):
    """A latency table is missing, broken or lacks a shape; the message names file, field, expectation and fix.

    Args:
        message: for whoever runs the server.
        allowed: what could have been asked for, where the question was wrong rather than the table: for clients, whom
            files and fixes do not concern.
    """

    def __init__(self, message: str, allowed: str = "") -> None:
        self.allowed = allowed
        super().__init__(message)
