"""Codes survive as text where Triton loses them."""

import pytest

from tests.unit.triton_adapter.fakes import pb_utils
from tetriserve_backend.domain import ErrorCode, RequestCancelledError, UnavailableError
from tetriserve_backend.triton_adapter.errors import describe, to_triton_error


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_is_found_again_in_its_message(code: ErrorCode) -> None:
    error = to_triton_error(pb_utils, f"in ensemble 'tetriserve', {code.value}: what happened: twice")
    assert error.message == f"{code.value}: what happened: twice"
    names = {ErrorCode.INVALID_ARGUMENT: "INVALID_ARG"}
    assert error.code == getattr(pb_utils.TritonError, names.get(code, code.value))


def test_message_without_a_code_is_internal() -> None:
    error = to_triton_error(pb_utils, "Stub process 'denoise_0_0' is not healthy.")
    assert error.code == pb_utils.TritonError.INTERNAL
    assert error.message == "INTERNAL: Stub process 'denoise_0_0' is not healthy."


def test_errors_are_described_by_code_and_bugs_by_their_type() -> None:
    assert describe(UnavailableError("draining")) == "UNAVAILABLE: draining"
    assert describe(RequestCancelledError("gone")) == "CANCELLED: gone"
    assert describe(KeyError("x")) == "INTERNAL: KeyError: 'x'"
