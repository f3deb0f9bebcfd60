"""Where the stand-ins of served models come to the engine: a local socket that only this user can reach."""

import asyncio
import contextlib
import logging
from pathlib import Path

from tetriserve_backend.domain import ErrorCode, TetriserveError
from tetriserve_backend.triton_adapter.model_orders import Done, LoadOrder, Message, Refused, decode, encode
from tetriserve_backend.triton_adapter.served_models import ServedModels

_log = logging.getLogger(__name__)


class ModelDesk:
    """Takes orders; a model is served as long as the connection that ordered it lasts.

    Args:
        path: of the socket, in a directory that only this user can enter.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self._models: ServedModels | None = None
        self._is_serving = asyncio.Event()

    async def open(self) -> None:
        """Let stand-ins in; they wait until `serve`."""
        # One that a killed server has left.
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._on_visit, self._path)
        self._inode = self._path.stat().st_ino

    def serve(self, models: ServedModels) -> None:
        """Carry out orders."""
        self._models = models
        self._is_serving.set()

    async def close(self) -> None:
        """Send everybody away. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                # Unless it is our successor's already: Triton starts a new stub before it ends the old one.
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
                    self._path.parent.rmdir()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    async def _on_visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.current_task()
        assert visit is not None
        self._visits.add(visit)
        try:
            await self._is_serving.wait()
            assert self._models is not None
            await self._attend(self._models, reader, writer)
        except asyncio.CancelledError:
            # The server ends.
            pass
        except (ConnectionError, ValueError):
            _log.exception("a model's stand-in was sent away")
        finally:
            self._visits.discard(visit)
            writer.close()

    async def _attend(self, models: ServedModels, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = decode(await reader.readline())
        if not isinstance(order, LoadOrder):
            raise ValueError(f"expected an order to load, got {order.kind}")
        name = order.settings.name
        answer: Message
        try:
            await models.load(order.settings, holder=writer)
        except Exception as error:
            if not isinstance(error, TetriserveError):
                _log.exception("%s could not be loaded", name)
            answer = Refused(code=getattr(error, "code", ErrorCode.INTERNAL), reason=str(error) or repr(error))
        else:
            answer = Done()
        writer.write(encode(answer))
        if isinstance(answer, Refused):
            await writer.drain()
            return
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
        if not line:
            _log.warning("what stands for %s in Triton is gone", name)
        await models.unload(name, holder=writer)
        with contextlib.suppress(ConnectionError):
            writer.write(encode(Done()))
            await writer.drain()
