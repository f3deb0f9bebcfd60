"""What can go wrong for a client, as a tree whose branches call for different reactions.

::

    TetriserveClientError
    ├── RequestRefusedError         the request must change
    │   ├── InvalidRequestError     a field is wrong; the message names it and what is allowed
    │   ├── DuplicateRequestError   a request of this id is being served already
    │   └── RequestCancelledError   somebody cancelled this request
    ├── ServerFailureError          the request was fine, the server failed
    │   └── ServerUnavailableError  overload, shutdown, or nobody there; another try may work
    └── RequestTimeoutError         the caller's own limit passed; the request has been cancelled
"""

import re


class TetriserveClientError(Exception):
    """Base of every error that this library raises on purpose."""


class RequestRefusedError(TetriserveClientError):
    """The server refused the request; sending the same again will fail again."""


class InvalidRequestError(RequestRefusedError):
    """A field is missing, of the wrong kind or out of range."""


class DuplicateRequestError(RequestRefusedError):
    """A request of this id is being served already."""


class RequestCancelledError(RequestRefusedError):
    """The request was cancelled before its image was done."""


class ServerFailureError(TetriserveClientError):
    """The server failed on a request that was fine."""


class ServerUnavailableError(ServerFailureError):
    """The server is not there, shutting down or too busy; another try may work."""


class RequestTimeoutError(TetriserveClientError):
    """The answer did not come within the caller's limit, so the request has been cancelled."""


# Triton makes INTERNAL of every code that crosses an ensemble, so the server repeats its own in the text.
_CODED = re.compile(r"\b(INVALID_ARGUMENT|ALREADY_EXISTS|CANCELLED|UNAVAILABLE|INTERNAL): (.*)", re.DOTALL)
_BY_CODE: dict[str, type[TetriserveClientError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "ALREADY_EXISTS": DuplicateRequestError,
    "CANCELLED": RequestCancelledError,
    "UNAVAILABLE": ServerUnavailableError,
    "INTERNAL": ServerFailureError,
    "NOT_FOUND": ServerUnavailableError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
}


def error_from_message(message: str, status: str | None = None) -> TetriserveClientError:
    """The error that a server's message stands for.

    Args:
        message: the server's text; `<CODE>: <text>` anywhere in it decides and is taken out of it.
        status: the transport's own status, such as `StatusCode.UNAVAILABLE` or `400`, used where the text has no code.
    """
    coded = _CODED.search(message)
    if coded:
        return _BY_CODE[coded[1]](coded[2].strip())
    if "Request for unknown model" in message:
        return ServerUnavailableError(message)
    name = (status or "").rpartition(".")[2]
    if name == "400":
        return InvalidRequestError(message)
    return _BY_CODE.get(name, ServerFailureError)(message)
