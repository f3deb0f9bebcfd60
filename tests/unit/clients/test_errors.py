"""A server's message becomes the error that its caller can react to."""

import pytest

from tetriserve_client import (
    DuplicateRequestError,
    InvalidRequestError,
    RequestCancelledError,
    ServerFailureError,
    ServerUnavailableError,
    TetriserveClientError,
    error_from_message,
)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ("INVALID_ARGUMENT: height: got 10", InvalidRequestError, "height: got 10"),
        ("in ensemble 'tetriserve', ALREADY_EXISTS: request id", DuplicateRequestError, "request id"),
        ("CANCELLED: by the client", RequestCancelledError, "by the client"),
        ("UNAVAILABLE: shutting down", ServerUnavailableError, "shutting down"),
        ("INTERNAL: a rank died: twice", ServerFailureError, "a rank died: twice"),
    ],
)
def test_code_in_the_text_decides(message: str, kind: type[TetriserveClientError], text: str) -> None:
    error = error_from_message(message, "StatusCode.INTERNAL")
    assert type(error) is kind
    assert str(error) == text


def test_first_code_counts_where_the_text_repeats_another() -> None:
    assert type(error_from_message("CANCELLED: INTERNAL: x")) is RequestCancelledError


@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [
        ("failed to connect", "StatusCode.UNAVAILABLE", ServerUnavailableError),
        ("Request for unknown model: 'tetriserve' is not found", "http.400", ServerUnavailableError),
        ("failed to parse the request JSON buffer", "http.400", InvalidRequestError),
        ("anything", None, ServerFailureError),
    ],
)
def test_status_decides_where_the_text_has_no_code(
    message: str, status: str | None, kind: type[TetriserveClientError]
) -> None:
    assert type(error_from_message(message, status)) is kind
