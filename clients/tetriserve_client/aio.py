"""The asyncio client over gRPC streams."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import InferenceServerException
from tritonclient.grpc import aio as triton

from tetriserve_client.errors import RequestTimeoutError, ServerFailureError, TetriserveClientError
from tetriserve_client.request import ENGINE_MODEL, IMAGE_MODEL, ImageRequest, Size, new_request_id
from tetriserve_client.result import GenerateResult, Progress, ProgressCallback
from tetriserve_client.sync import CANCEL_PAUSE_S, CANCEL_TRIES, CONTROL_TIMEOUT_S
from tetriserve_client.wire import EMPTY_FINAL_RESPONSE, FieldValue, Reply, error_of, read_reply, tensors


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
        size: Size | str | None = None,
        steps: int | None = None,
        slo_s: float | None = None,
        seed: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        output_format: str | None = None,
        request_id: str | None = None,
        on_progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
    ) -> GenerateResult:
        """Ask for one image and wait for it.

        The fields are those of `ImageRequest`. After `timeout_s` seconds it gives up and cancels; None waits as
        long as the server takes. `on_progress` is called after each denoising step; an exception of it
        cancels the request.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        request = ImageRequest(
            prompt, size, steps, slo_s, seed, guidance, negative_prompt, output_format, request_id or new_request_id()
        )
        return await self.send(request, on_progress=on_progress, timeout_s=timeout_s)

    async def send(
        self, request: ImageRequest, *, on_progress: ProgressCallback | None = None, timeout_s: float | None = None
    ) -> GenerateResult:
        """As `generate`, for a request made before.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        events = self.stream(request, progress=on_progress is not None, timeout_s=timeout_s)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, GenerateResult):
                    return event
                if on_progress is not None:
                    on_progress(event)
        raise ServerFailureError("the server ended the stream without an image")

    async def stream(
        self, request: ImageRequest, *, progress: bool = True, timeout_s: float | None = None
    ) -> AsyncGenerator[Progress | GenerateResult, None]:
        """Yield `Progress` after each step, then one `GenerateResult`; closing the generator cancels the request.

        Raises:
            TetriserveClientError: see `tetriserve_client.errors` for the kinds.
        """
        fields: dict[str, FieldValue] = {**request.fields(), "base64": False, "stream_progress": progress}
        started_s = time.monotonic()
        ended = False
        replies = self._exchange(IMAGE_MODEL, fields, request.request_id, timeout_s)
        try:
            result = None
            async for reply in replies:
                ended = reply.final
                if reply.image and reply.metadata is not None:
                    result = GenerateResult(reply.image, reply.metadata, time.monotonic() - started_s)
                elif reply.metadata is not None and progress:
                    total = int(reply.metadata["num_inference_steps"])
                    yield Progress(reply.step, total, time.monotonic() - started_s)
            ended = True
            if result is not None:
                yield result
        except RequestTimeoutError:
            raise
        except TetriserveClientError:
            ended = True
            raise
        finally:
            await replies.aclose()
            if not ended:
                await self._abandon(request.request_id)

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
            async for reply in replies:
                if reply.metadata is not None:
                    return dict(reply.metadata)
        raise ServerFailureError(f"the server did not answer the operation '{op}'")

    async def _abandon(self, request_id: str) -> None:
        # Why the caller stopped matters more than whether the server could be told.
        with contextlib.suppress(TetriserveClientError):
            for _ in range(CANCEL_TRIES):
                if await self.cancel(request_id):
                    return
                await asyncio.sleep(CANCEL_PAUSE_S)

    async def _exchange(
        self, model: str, fields: dict[str, FieldValue], request_id: str, timeout_s: float | None
    ) -> AsyncGenerator[Reply, None]:
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        # tritonclient's asyncio twin has no argument for the empty final response, but passes parameters through.
        call = {
            "model_name": model,
            "inputs": tensors(fields),
            "request_id": request_id,
            "parameters": {EMPTY_FINAL_RESPONSE: True},
        }
        responses = self._connection().stream_infer(_once(call))
        try:
            while True:
                left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
                try:
                    result, failure = await asyncio.wait_for(responses.__anext__(), left_s)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError:
                    raise RequestTimeoutError(f"no answer from {self._url} within {timeout_s} s") from None
                if failure is not None:
                    raise error_of(failure, self._url)
                reply = read_reply(result)
                yield reply
                if reply.final:
                    return
        except grpc.RpcError as failure:
            raise error_of(InferenceServerException(failure.details(), str(failure.code())), self._url) from failure
        finally:
            responses.cancel()

    def _connection(self) -> Any:
        # Made on first use, because a channel of grpc.aio belongs to the loop that runs at that moment.
        if self._triton is None:
            self._triton = triton.InferenceServerClient(self._url)
        return self._triton


async def _once(call: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    yield call
