"""The asyncio client over gRPC streams."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import InferenceServerException
from tritonclient.grpc import aio as triton

from tetriserve_client.errors import RequestTimeoutError, ServerFailureError, TetriserveClientError
from tetriserve_client.request import ENGINE_MODEL, IMAGE_MODEL, ImageFields, ImageRequest, make_request, new_request_id
from tetriserve_client.result import GenerateResult, ImageResult, Progress, ProgressCallback, read_event
from tetriserve_client.sync import CANCEL_PAUSE_S, CANCEL_TRIES, CONTROL_TIMEOUT_S, FAREWELL_S
from tetriserve_client.wire import EMPTY_FINAL_RESPONSE, FieldValue, Reply, error_of, read_reply, tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncTetriserveClient:
    """Asks a server for images, one gRPC stream per request over one connection; belongs to one event loop.

    A caller who stops waiting (timeout, cancelled task, closed generator) leaves no work behind on the server:
    the request is cancelled there.

    Args:
        url: host and port of the server's gRPC endpoint.
    """

    def __init__(self, url: str = "localhost:8001") -> None:
        self._url = url
        self._triton: Any = None

    async def __aenter__(self) -> "AsyncTetriserveClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests that still wait for an answer fail."""
        if self._triton is not None:
            await self._triton.close()
            self._triton = None

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
        **fields: "Unpack[ImageFields]",
    ) -> GenerateResult:
        """Ask for one image, or for `num_images`, and wait for all of them.

        `fields` are those of `ImageFields`. After `timeout_s` seconds it gives up and cancels; None waits as
        long as the server takes. `on_progress` is called after each denoising step; an exception of it
        cancels the request. With `preview` each call brings a small image of what is to come.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        return await self.send(make_request(prompt, fields), on_progress=on_progress, timeout_s=timeout_s)

    async def send(
        self, request: ImageRequest, *, on_progress: ProgressCallback | None = None, timeout_s: float | None = None
    ) -> GenerateResult:
        """As `generate`, for a request made before.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        started_s = time.monotonic()
        images = []
        events = self.stream(request, progress=on_progress is not None, timeout_s=timeout_s)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, ImageResult):
                    images.append(event)
                elif on_progress is not None:
                    on_progress(event)
        return GenerateResult.of(images, time.monotonic() - started_s)

    async def stream(
        self, request: ImageRequest, *, progress: bool = True, timeout_s: float | None = None
    ) -> AsyncGenerator[Progress | ImageResult, None]:
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
            async for reply in replies:
                event = read_event(reply, time.monotonic() - started_s)
                if event is not None:
                    yield event
        finally:
            if not replies.ended:
                await self._abandon(request.request_id, replies)
            await replies.aclose()

    async def cancel(self, request_id: str) -> bool:
        """Stop a request, wherever it is; False if the server knows of none by this id.

        Raises:
            TetriserveClientError: the server could not be asked.
        """
        return bool((await self._control("cancel", target=request_id)).get("cancelled"))

    async def status(self) -> dict[str, Any]:
        """What the engine says of itself: state, world size, queue, policy.

        Raises:
            TetriserveClientError: the server could not be asked.
        """
        return await self._control("status")

    async def _control(self, op: str, **fields: FieldValue) -> dict[str, Any]:
        replies = self._exchange(ENGINE_MODEL, {"op": op, **fields}, new_request_id(), CONTROL_TIMEOUT_S)
        async with contextlib.aclosing(replies):
            told = [reply.metadata async for reply in replies if reply.metadata is not None]
        if told:
            return dict(told[0])
        raise ServerFailureError(f"the server did not answer the operation '{op}'")

    async def _abandon(self, request_id: str, replies: "_Replies") -> None:
        # Why the caller stopped matters more than whether the server could be told.
        with contextlib.suppress(TetriserveClientError):
            for _ in range(CANCEL_TRIES):
                if await self.cancel(request_id):
                    break
                await asyncio.sleep(CANCEL_PAUSE_S)
            await replies.skip_to_end(FAREWELL_S)

    def _exchange(
        self, model: str, fields: dict[str, FieldValue], request_id: str, timeout_s: float | None
    ) -> "_Replies":
        # Made on first use, because a channel of grpc.aio belongs to the loop that runs at that moment.
        if self._triton is None:
            self._triton = triton.InferenceServerClient(self._url)
        # tritonclient's asyncio twin has no argument for the empty final response, but passes parameters through.
        call = {
            "model_name": model,
            "inputs": tensors(fields),
            "request_id": request_id,
            "parameters": {EMPTY_FINAL_RESPONSE: True},
        }
        return _Replies(self._triton.stream_infer(_once(call)), self._url, timeout_s)


class _Replies:
    """The responses to one request, on a stream of its own, because tritonclient drops the request id of errors.

    Iterating ends after the final response and raises on an error, after which nothing more would come.
    `ended` tells whether it has come to either.
    """

    def __init__(self, responses: Any, url: str, timeout_s: float | None) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        self.ended = False
        self._responses = responses
        self._arrived: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        # A task of its own reads the stream, because giving up a read of grpc.aio tears its stream down.
        self._reader = asyncio.create_task(self._read())

    async def __aiter__(self) -> AsyncGenerator[Reply, None]:
        while not self.ended:
            left_s = None if self._give_up_s is None else max(0.0, self._give_up_s - time.monotonic())
            try:
                result, failure = await asyncio.wait_for(self._arrived.get(), left_s)
            except asyncio.TimeoutError:
                raise RequestTimeoutError(f"no answer from {self._url} within {self._timeout_s} s") from None
            if failure is not None:
                self.ended = True
                raise error_of(failure, self._url)
            reply = read_reply(result)
            self.ended = reply.final
            yield reply

    async def skip_to_end(self, limit_s: float) -> None:
        """Take what still comes, for at most `limit_s` seconds.

        Raises:
            TetriserveClientError: the stream ended with an error, or not within the limit.
        """
        self._give_up_s = time.monotonic() + limit_s
        async for _ in self:
            pass

    async def aclose(self) -> None:
        """Leave the stream: softly at its end, by force before it."""
        if not self.ended:
            self.ended = True
            self._responses.cancel()
        await asyncio.wait([self._reader], timeout=FAREWELL_S)

    async def _read(self) -> None:
        try:
            async for result, failure in self._responses:
                self._arrived.put_nowait((result, failure))
        except asyncio.CancelledError:
            # What a stream that we tore down ourselves ends with.
            return
        except grpc.RpcError as failure:
            reason = InferenceServerException(failure.details(), str(failure.code()))
            self._arrived.put_nowait((None, reason))
        else:
            lost = InferenceServerException("INTERNAL: the server ended the stream without a final response")
            self._arrived.put_nowait((None, lost))


async def _once(call: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    yield call
