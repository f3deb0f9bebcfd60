"""The one place that maps our error codes to Triton's and back."""

import re
from typing import Any, Final

from tetriserve_backend.domain import ErrorCode, TetriserveError

_TRITON_CODE_NAMES: Final = {
    ErrorCode.INVALID_ARGUMENT: "INVALID_ARG",
    ErrorCode.ALREADY_EXISTS: "ALREADY_EXISTS",
    ErrorCode.CANCELLED: "CANCELLED",
    ErrorCode.UNAVAILABLE: "UNAVAILABLE",
    ErrorCode.INTERNAL: "INTERNAL",
}
_CODED_MESSAGE: Final = re.compile(rf"\b({'|'.join(code.value for code in ErrorCode)}): ")


def describe(error: BaseException) -> str:
    """`<CODE>: <text>`: Triton turns every code into INTERNAL on the way through BLS, the text survives."""
    if isinstance(error, TetriserveError):
        return f"{error.code.value}: {error}"
    return f"{ErrorCode.INTERNAL.value}: {type(error).__name__}: {error}"


def to_triton_error(pb_utils: Any, message: str) -> Any:
    """A `TritonError` with the code that `message` tells; INTERNAL where it tells none.

    Triton puts words of its own in front of a message that passes through an ensemble: they are cut off.
    """
    found = _CODED_MESSAGE.search(message)
    code = ErrorCode(found.group(1)) if found else ErrorCode.INTERNAL
    text = message[found.start() :] if found else f"{code.value}: {message}"
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, _TRITON_CODE_NAMES[code]))


def error_response(pb_utils: Any, error: BaseException) -> Any:
    """The response that tells a client about `error`."""
    return pb_utils.InferenceResponse(error=to_triton_error(pb_utils, describe(error)))
