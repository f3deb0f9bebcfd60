"""The sender never touches Triton's after the end, and never leaves a client without one."""

import gc
import time

import pytest

from tests.unit.triton_adapter.fakes import FakeSender, pb_utils
from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.triton_adapter.safe_sender import SafeSender


def test_nothing_is_sent_or_asked_after_the_last_response() -> None:
    raw = FakeSender()
    sender = SafeSender(pb_utils, raw)
    sender.send("progress")
    sender.send_last("image")
    sender.send("late progress")
    sender.send_last("second image")
    sender.send_error(InvalidRequestError("a", "b", "c"))
    assert not sender.is_cancelled()
    assert [response for response, _ in raw.sent] == ["progress", "image"]


def test_client_that_is_gone_is_seen_before_the_end() -> None:
    assert SafeSender(pb_utils, sender := FakeSender(gone=True)).is_cancelled()
    assert sender.is_final


def test_dropped_sender_answers_with_an_error() -> None:
    raw = FakeSender()
    sender = SafeSender(pb_utils, raw)
    del sender
    gc.collect()
    assert raw.is_final
    assert raw.errors == ["INTERNAL: the server lost track of this request"]


def test_response_that_does_not_fit_becomes_an_error() -> None:
    raw = FakeSender(too_large=True)
    sender = SafeSender(pb_utils, raw)
    sender.send("a large image")
    sender.send_last("another")
    assert raw.is_final
    assert raw.errors == ["INTERNAL: the response could not be sent: No space left on device"]


@pytest.mark.parametrize("is_dropped", [False, True])
def test_client_gets_the_error_as_soon_as_it_can_be_sent(is_dropped: bool) -> None:
    raw = FakeSender(failing_sends=4)
    sender = SafeSender(pb_utils, raw)
    if not is_dropped:
        sender.send_last("image")
        sender.send_last("nobody gets this")
    del sender
    gc.collect()
    start_s = time.monotonic()
    while not raw.is_final:
        assert time.monotonic() - start_s < 5.0
        time.sleep(0.01)
    assert raw.errors == ["INTERNAL: the response could not be sent: No space left on device"]


def test_error_is_sent_with_its_code() -> None:
    raw = FakeSender()
    SafeSender(pb_utils, raw).send_error(InvalidRequestError("height", "got 7", "16"))
    ((response, _),) = raw.sent
    assert response.error.code == pb_utils.TritonError.INVALID_ARG
    assert response.error.message == "INVALID_ARGUMENT: height: got 7; allowed: 16"
