"""The blocking client over gRPC streams."""

import contextlib
import queue
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tritonclient import grpc as triton

from tetriserve_client.errors import RequestTimeoutError, ServerFailureError, TetriserveClientError
from tetriserve_client.request import ENGINE_MODEL, IMAGE_MODEL, ImageFields, ImageRequest, make_request, new_request_id
from tetriserve_client.result import GenerateResult, ImageResult, Progress, ProgressCallback, read_event
from tetriserve_client.wire import FieldValue, Reply, error_of, read_reply, tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack

CONTROL_TIMEOUT_S = 5.0
"""How long `cancel` and `status` wait: they touch no GPU."""

CANCEL_TRIES, CANCEL_PAUSE_S = 3, 0.1
"""A request that was sent just now may not have reached the engine when its cancellation does."""

FAREWELL_S = 2.0
"""How long to wait for the end of a stream whose request was cancelled: a stream that is torn down in mid-request
leaves the request's remains in Triton 2.51, which then takes its whole exit timeout to stop."""


class TetriserveClient:
    """Asks a server for images, one gRPC stream per request; may be used from several threads.

    A caller who stops waiting (timeout, KeyboardInterrupt, a closed generator) leaves no work behind on the
    server: the request is cancelled there.

    Args:
        url: host and port of the server's gRPC endpoint.
    """

    def __init__(self, url: str = "localhost:8001") -> None:
        self._url = url

    def __enter__(self) -> "TetriserveClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept between requests, so nothing is left to close; there for `with`."""

    def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
        **fields: "Unpack[ImageFields]",
    ) -> GenerateResult:
        """Ask for one image, or for `num_images`, and wait for all of them.

        `fields` are those of `ImageFields`. After `timeout_s` seconds it gives up and cancels; None waits as
        long as the server takes. `on_progress` is called after each denoising step, in this thread; an exception of it
        cancels the request. With `preview` each call brings a small image of what is to come.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        return self.send(make_request(prompt, fields), on_progress=on_progress, timeout_s=timeout_s)

    def send(
        self, request: ImageRequest, *, on_progress: ProgressCallback | None = None, timeout_s: float | None = None
    ) -> GenerateResult:
        """As `generate`, for a request made before.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        started_s = time.monotonic()
        images = []
        events = self.stream(request, progress=on_progress is not None, timeout_s=timeout_s)
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, ImageResult):
                    images.append(event)
                elif on_progress is not None:
                    on_progress(event)
        return GenerateResult.of(images, time.monotonic() - started_s)

    def stream(
        self, request: ImageRequest, *, progress: bool = True, timeout_s: float | None = None
    ) -> Generator[Progress | ImageResult, None, None]:
        """Yield `Progress` after each step (unless not `progress`), and each image as soon as it is done.

        The images of a request are worked on side by side, so they may come in any order. Closing the generator
        cancels what is not done yet; an error ends all of them.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        preview = progress and bool(request.preview)
        fields: dict[str, FieldValue] = {
            **request.fields(), "base64": False, "stream_progress": progress, "preview": preview,
        }  # fmt: skip
        started_s = time.monotonic()
        replies = self._exchange(IMAGE_MODEL, fields, request.request_id, timeout_s)
        try:
            for reply in replies:
                event = read_event(reply, time.monotonic() - started_s)
                if event is not None:
                    yield event
        finally:
            if not replies.ended:
                self._abandon(request.request_id, replies)
            replies.close()

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

    def _control(self, op: str, **fields: FieldValue) -> dict[str, Any]:
        replies = self._exchange(ENGINE_MODEL, {"op": op, **fields}, new_request_id(), CONTROL_TIMEOUT_S)
        with contextlib.closing(replies):
            told = [reply.metadata for reply in replies if reply.metadata is not None]
        if told:
            return dict(told[0])
        raise ServerFailureError(f"the server did not answer the operation '{op}'")

    def _abandon(self, request_id: str, replies: "_Replies") -> None:
        # Why the caller stopped matters more than whether the server could be told.
        with contextlib.suppress(TetriserveClientError):
            for _ in range(CANCEL_TRIES):
                if self.cancel(request_id):
                    break
                time.sleep(CANCEL_PAUSE_S)
            replies.skip_to_end(FAREWELL_S)

    def _exchange(
        self, model: str, fields: dict[str, FieldValue], request_id: str, timeout_s: float | None
    ) -> "_Replies":
        return _Replies(self._url, model, fields, request_id, timeout_s)


class _Replies:
    """The responses to one request, on a stream of its own, because tritonclient drops the request id of errors.

    Iterating ends after the final response and raises on an error, after which nothing more would come.
    `ended` tells whether it has come to either.
    """

    def __init__(
        self, url: str, model: str, fields: dict[str, FieldValue], request_id: str, timeout_s: float | None
    ) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.ended = False
        self._triton = triton.InferenceServerClient(url)
        try:
            self._triton.start_stream(callback=lambda result, error: self._arrived.put((result, error)))
            self._triton.async_stream_infer(
                model, tensors(fields), request_id=request_id, enable_empty_final_response=True
            )
        except triton.InferenceServerException as failure:
            self.close()
            # Where the connection failed at once, tritonclient tells the reason to the callback alone.
            reason = failure if self._arrived.empty() else self._arrived.get()[1]
            raise error_of(reason, url) from failure

    def __iter__(self) -> Iterator[Reply]:
        while not self.ended:
            try:
                left_s = None if self._give_up_s is None else max(0.0, self._give_up_s - time.monotonic())
                result, failure = self._arrived.get(timeout=left_s)
            except queue.Empty:
                raise RequestTimeoutError(f"no answer from {self._url} within {self._timeout_s} s") from None
            if failure is not None:
                self.ended = True
                raise error_of(failure, self._url)
            reply = read_reply(result)
            self.ended = reply.final
            yield reply

    def skip_to_end(self, limit_s: float) -> None:
        """Take what still comes, for at most `limit_s` seconds.

        Raises:
            TetriserveClientError: the stream ended with an error, or not within the limit.
        """
        self._give_up_s = time.monotonic() + limit_s
        for _ in self:
            pass

    def close(self) -> None:
        """Leave the stream: softly at its end, by force before it."""
        self._triton.stop_stream(cancel_requests=not self.ended)
        self.ended = True
        self._triton.close()
