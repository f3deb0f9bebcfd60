"""The asyncio client against a real server."""

import asyncio
import contextlib

import pytest

from tests.integration.clients.conftest import LONG_STEPS, wait_for_outcome
from tests.integration.conftest import Server
from tetriserve_client import (
    AsyncTetriserveClient,
    ImageRequest,
    InvalidRequestError,
    Progress,
    RequestTimeoutError,
    ServerUnavailableError,
)


def test_many_requests_share_one_client(server: Server) -> None:
    async def ask() -> list[tuple[int, int]]:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            steps: dict[int, int] = {}

            async def one(seed: int) -> tuple[int, int]:
                def count(progress: Progress) -> None:
                    steps[seed] = progress.step

                result = await client.generate("x", size="64x64", steps=3, seed=seed, on_progress=count)
                return result.seed, steps[seed]

            return list(await asyncio.gather(*map(one, range(8))))

    assert asyncio.run(ask()) == [(seed, 3) for seed in range(8)]


def test_several_images_make_one_result(server: Server) -> None:
    async def ask() -> list[int]:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            result = await client.generate("x", size="64x64", steps=2, seed=5, num_images=3, model="demo-flux")
            return [image.seed for image in result.images]

    assert asyncio.run(ask()) == [5, 6, 7]


def test_error_is_raised_and_the_next_request_succeeds(server: Server) -> None:
    async def ask() -> int:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            with pytest.raises(InvalidRequestError, match="num_inference_steps"):
                await client.generate("x", steps=0)
            return len((await client.generate("x", size="64x64", steps=1)).image)

    assert asyncio.run(ask()) > 0


def test_cancelled_task_cancels_on_the_server(server: Server) -> None:
    async def ask() -> None:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            started = asyncio.Event()
            job = client.generate(
                "x", size="256x256", steps=LONG_STEPS, request_id="aio-task", on_progress=lambda _: started.set()
            )
            task = asyncio.create_task(job)
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    assert wait_for_outcome(server, "aio-task") == "cancel"


def test_timeout_cancels_on_the_server(server: Server) -> None:
    async def ask() -> None:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            with pytest.raises(RequestTimeoutError):
                await client.generate("x", size="256x256", steps=LONG_STEPS, timeout_s=0.5, request_id="aio-timeout")

    asyncio.run(ask())
    assert wait_for_outcome(server, "aio-timeout") == "cancel"


def test_closed_generator_cancels_on_the_server(server: Server) -> None:
    async def ask() -> None:
        request = ImageRequest("x", size="256x256", steps=LONG_STEPS, request_id="aio-closed")
        async with (
            AsyncTetriserveClient(server.grpc_url) as client,
            contextlib.aclosing(client.stream(request)) as events,
        ):
            async for event in events:
                assert isinstance(event, Progress)
                break

    asyncio.run(ask())
    assert wait_for_outcome(server, "aio-closed") == "cancel"


def test_status_and_cancel_answer(server: Server) -> None:
    async def ask() -> tuple[str, bool]:
        async with AsyncTetriserveClient(server.grpc_url) as client:
            return (await client.status())["state"], await client.cancel("nobody")

    assert asyncio.run(ask()) == ("serving", False)


def test_absent_server_is_unavailable() -> None:
    async def ask() -> None:
        async with AsyncTetriserveClient("localhost:1") as client:
            await client.generate("x")

    with pytest.raises(ServerUnavailableError, match="localhost:1"):
        asyncio.run(ask())
