"""The blocking client over plain HTTP: Triton's `generate`, one JSON object in and one out."""

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tetriserve_client.errors import (
    RequestTimeoutError,
    ServerFailureError,
    ServerUnavailableError,
    TetriserveClientError,
    error_from_message,
)
from tetriserve_client.request import (
    ENGINE_MODEL,
    IMAGE_MODEL,
    WHOLE_MODEL,
    ImageFields,
    ImageRequest,
    make_request,
)
from tetriserve_client.result import GenerateResult, ImageResult
from tetriserve_client.sync import CANCEL_PAUSE_S, CANCEL_TRIES, CONTROL_TIMEOUT_S
from tetriserve_client.wire import FieldValue, read_metadata

if TYPE_CHECKING:
    from typing_extensions import Unpack

_OK = 200
_PROBE_PARAMETER = "tetriserve_probe"

# Triton 2.51 crashes on large bodies sent as a form, which is what many HTTP libraries do unless told.
_HEADERS = {"Content-Type": "application/json"}


class HttpTetriserveClient:
    """Asks a server for images over HTTP, one connection per request; may be used from several threads.

    There is no progress on this way, and no preview. A caller who stops waiting (timeout, KeyboardInterrupt)
    leaves no work behind on the server: the request is cancelled there.

    Args:
        url: the server's HTTP endpoint, as `http://host:port` or `host:port`.
    """

    def __init__(self, url: str = "localhost:8000") -> None:
        self._address = urlsplit(url if "//" in url else f"http://{url}")
        self._url = url

    def generate(
        self,
        prompt: str,
        *,
        timeout_s: float | None = None,
        **fields: "Unpack[ImageFields]",
    ) -> GenerateResult:
        """Ask for one image, or for `num_images`, and wait for all of them.

        `fields` are those of `ImageFields`. After `timeout_s` seconds it gives up and cancels; None waits as
        long as the server takes.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        return self.send(make_request(prompt, fields), timeout_s=timeout_s)

    def send(self, request: ImageRequest, *, timeout_s: float | None = None) -> GenerateResult:
        """As `generate`, for a request made before.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        model = WHOLE_MODEL if (request.num_images or 1) > 1 else IMAGE_MODEL
        # Previews come with progress, and this way takes one response.
        fields = {**request.fields(), "preview": False, "id": request.request_id}
        started_s = time.monotonic()
        ended = False
        try:
            answer = self._post(model, fields, timeout_s)
            ended = True
        except RequestTimeoutError:
            raise
        except TetriserveClientError:
            ended = True
            raise
        finally:
            if not ended:
                self._abandon(request.request_id)
        latency_s = time.monotonic() - started_s
        images, stories = _as_list(answer.get("image")), _as_list(answer.get("metadata"))
        results = [
            ImageResult(base64.b64decode(image), read_metadata(story), latency_s)
            for image, story in zip(images, stories, strict=False)
        ]
        return GenerateResult.of(results, latency_s)

    def cancel(self, request_id: str) -> bool:
        """Stop a request, wherever it is; False if the server knows of none by this id.

        Raises:
            TetriserveClientError: the server could not be asked.
        """
        return bool(self._control("cancel", target=request_id).get("cancelled"))

    def status(self) -> dict[str, Any]:
        """What the engine says of itself: state, world size, queue, policy.

        Raises:
            TetriserveClientError: the server could not be asked.
        """
        return self._control("status")

    def probe(self) -> dict[str, Any]:
        """Pass a request through every model without making an image; what `status` tells.

        Triton's own ready endpoint stays fine when a model's process is dead.

        Raises:
            TetriserveClientError: some part of the server does not answer.
        """
        fields = {"prompt": "probe", "parameters": {_PROBE_PARAMETER: True}}
        return read_metadata(self._post(IMAGE_MODEL, fields, CONTROL_TIMEOUT_S)["metadata"])

    def _control(self, op: str, **fields: FieldValue) -> dict[str, Any]:
        return read_metadata(self._post(ENGINE_MODEL, {"op": op, **fields}, CONTROL_TIMEOUT_S)["metadata"])

    def _abandon(self, request_id: str) -> None:
        # Why the caller stopped matters more than whether the server could be told.
        with contextlib.suppress(TetriserveClientError):
            for _ in range(CANCEL_TRIES):
                if self.cancel(request_id):
                    return
                time.sleep(CANCEL_PAUSE_S)

    def _post(self, model: str, fields: Mapping[str, object], timeout_s: float | None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(
            self._address.hostname or "localhost", self._address.port or 8000, timeout=timeout_s
        )
        try:
            connection.request("POST", f"/v2/models/{model}/generate", json.dumps(fields).encode(), _HEADERS)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except TimeoutError:
            raise RequestTimeoutError(f"no answer from {self._url} within {timeout_s} s") from None
        except (OSError, http.client.HTTPException) as failure:
            raise ServerUnavailableError(f"no TetriServe server answers at {self._url} ({failure})") from failure
        finally:
            connection.close()
        return _read_answer(status, body)


def _as_list(value: Any) -> list[Any]:
    """Triton writes a tensor of one element as that element."""
    if isinstance(value, list):
        return value
    return [value] if value else []


def _read_answer(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {"error": body[:200].decode(errors="replace") or "an empty answer"}
    if not isinstance(answer, dict):
        raise ServerFailureError(f"the server answered with something else than a JSON object: {body[:200]!r}")
    # Triton reports a wrong number of responses under status 200, so the key decides and not the status.
    if status != _OK or "error" in answer:
        raise error_from_message(str(answer.get("error", answer)), f"http.{status}")
    return answer
