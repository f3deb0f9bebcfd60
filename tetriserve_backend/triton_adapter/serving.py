"""What serves the requests of `denoise`, and the thread that its asyncio loop runs on."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tetriserve_backend.domain import Request
from tetriserve_backend.engine.metrics import Metric
from tetriserve_backend.engine.request_listener import RequestListener


class Engine(Protocol):
    """What this layer needs of `AsyncEngine`; called on the loop only."""

    def submit(self, request: Request, listener: RequestListener, *siblings: Request) -> None:
        """Take a validated request, and the others of its `prompt_group`; none of them where an id is in use."""

    def cancel(self, request_id: str) -> bool:
        """Stop a request; false if there is none of that id."""

    def status(self) -> dict[str, object]:
        """State for operators and probes."""

    def metrics(self) -> tuple[Metric, ...]:
        """Figures for monitoring."""

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, finish the running ones within `timeout_s`."""

    async def shutdown(self) -> None:
        """End everything."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that takes requests.

    Attributes:
        facts: what `op=status` tells of it, and what `model_fit` needs; `model` is its name.
        check_resolution: raises `LatencyTableError` for a (height, width) that it is not served at.
    """

    facts: Mapping[str, object]
    check_resolution: Callable[[int, int], None]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine that serves.

    Attributes:
        models: those that take requests at present, by name.
        facts: what `op=status` tells besides the engine's own state and the models (policy, world size, …).
        close: ends everything that was started besides the engine.
    """

    engine: Engine
    models: Mapping[str, ServedModel]
    facts: Mapping[str, object] = field(default_factory=dict)
    close: Callable[[], Awaitable[None]] = _nothing

    def status(self) -> dict[str, object]:
        """All that `op=status` tells."""
        return {
            **self.facts,
            "models": {name: dict(m.facts) for name, m in self.models.items()},
            **self.engine.status(),
        }

    async def shutdown(self) -> None:
        """End everything."""
        await self.close()
        await self.engine.shutdown()


class ServingThread:
    """Builds a `Serving` on an asyncio loop in a thread of its own and keeps that loop running.

    The thread lives as long as the model: ranks are told to die with the thread that started them.

    Args:
        build: makes and starts everything; runs on the loop.
    """

    def __init__(self, build: Callable[[], Awaitable[Serving]]) -> None:
        self._build = build
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._is_up = threading.Event()
        self._serving: Serving | None = None
        self._start_error: BaseException | None = None

    def start(self) -> Serving:
        """Start the thread and wait until it serves.

        Raises:
            Exception: whatever `build` raised.
        """
        self._thread.start()
        self._is_up.wait()
        if self._start_error is not None:
            raise self._start_error
        assert self._serving is not None
        return self._serving

    def post(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop soon. Callable from any thread."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Shut the engine down and end the thread. Idempotent."""
        if not self._thread.is_alive():
            return
        if self._serving is not None:
            asyncio.run_coroutine_threadsafe(self._serving.shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._serving = self._loop.run_until_complete(self._build())
        except BaseException as error:
            self._start_error = error
            return
        finally:
            self._is_up.set()
        self._loop.run_forever()
        self._loop.close()
