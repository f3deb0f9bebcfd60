"""A served model lives as long as what stands for it in Triton, whichever engine serves it."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tetriserve_backend.domain import ConfigurationError, UnavailableError
from tetriserve_backend.triton_adapter import model_lease, runtime_dir
from tetriserve_backend.triton_adapter.model_desk import ModelDesk
from tetriserve_backend.triton_adapter.model_lease import ModelLease
from tetriserve_backend.triton_adapter.runtime_dir import model_socket
from tetriserve_backend.triton_adapter.settings import ServedModelSettings


class Models:
    """Takes every order but those for `bad`, and the first `refusals`."""

    def __init__(self) -> None:
        self.held: dict[str, object] = {}
        self.refusals = 0.0

    async def load(self, settings: ServedModelSettings, holder: object) -> None:
        if settings.name == "bad":
            raise ConfigurationError("model.path: 'nowhere'")
        self.refusals -= 1
        if self.refusals >= 0:
            raise ConfigurationError("8 GiB needed, 1 GiB free")
        self.held[settings.name] = holder

    async def unload(self, name: str, holder: object) -> None:
        if self.held.get(name) is holder:
            del self.held[name]


class Desk:
    """A desk on a loop of its own, as in the stub of `denoise`."""

    def __init__(self, path: Path) -> None:
        self.models = Models()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._desk = ModelDesk(path)
        self._do(self._desk.open())

    def serve(self) -> "Desk":
        self._loop.call_soon_threadsafe(self._desk.serve, self.models)
        return self

    def close(self) -> None:
        self._do(self._desk.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5.0)  # type: ignore[arg-type]


@pytest.fixture
def path() -> Iterator[Path]:
    # A short one: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "sub" / "models.sock"


def wait_for(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 5.0
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def lease(path: Path, name: str = "a") -> ModelLease:
    return ModelLease(path, ServedModelSettings(name=name))


def test_model_is_served_from_take_to_release(path: Path) -> None:
    path.parent.mkdir()
    desk = Desk(path).serve()
    held = lease(path)
    held.take()
    assert list(desk.models.held) == ["a"]
    held.release()
    held.release()
    assert not desk.models.held
    desk.close()
    assert not path.parent.exists()


def test_lease_waits_for_an_engine_that_is_still_starting(path: Path) -> None:
    path.parent.mkdir()
    desk = Desk(path)
    held = lease(path)
    taking = threading.Thread(target=held.take)
    taking.start()
    time.sleep(0.1)
    assert taking.is_alive()
    desk.serve()
    taking.join(5.0)
    assert list(desk.models.held) == ["a"]
    held.release()
    desk.close()


def test_refusal_reaches_whoever_asked(path: Path) -> None:
    path.parent.mkdir()
    desk = Desk(path).serve()
    with pytest.raises(ConfigurationError, match=r"model\.path: 'nowhere'"):
        lease(path, "bad").take()
    desk.close()


def test_without_an_engine_there_is_an_error_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lease, "_PATIENCE_S", 0.2)
    with pytest.raises(UnavailableError, match="denoise"):
        lease(path).take()


def test_model_goes_to_the_next_engine_when_the_first_one_ends(path: Path) -> None:
    path.parent.mkdir()
    first = Desk(path).serve()
    held = lease(path)
    held.take()
    # Triton starts a new stub before it ends the old one.
    second = Desk(path).serve()
    first.close()
    wait_for(lambda: list(second.models.held) == ["a"])
    assert path.exists()
    held.release()
    assert not second.models.held
    second.close()


def test_model_that_has_no_room_beside_the_ranks_of_the_last_engine_is_served_once_they_are_gone(path: Path) -> None:
    path.parent.mkdir()
    first = Desk(path).serve()
    held = lease(path)
    held.take()
    second = Desk(path).serve()
    second.models.refusals = 2
    first.close()
    wait_for(lambda: list(second.models.held) == ["a"])
    held.release()
    second.close()


def test_model_that_the_next_engine_cannot_serve_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    first = Desk(path).serve()
    held = lease(path)
    held.take()
    monkeypatch.setattr(model_lease, "_PATIENCE_S", 0.2)
    second = Desk(path).serve()
    second.models.refusals = float("inf")
    first.close()
    wait_for(lambda: not held._watcher.is_alive())
    assert not second.models.held
    held.release()
    second.close()


def test_lease_can_be_released_while_there_is_no_engine(path: Path) -> None:
    path.parent.mkdir()
    desk = Desk(path).serve()
    held = lease(path)
    held.take()
    desk.close()
    held.release()


def test_killed_stand_in_takes_its_model_along(path: Path) -> None:
    path.parent.mkdir()
    desk = Desk(path).serve()
    held, other = lease(path), lease(path, "b")
    held.take()
    other.take()
    assert held._link is not None
    held._is_released.set()
    held._link._socket.shutdown(2)
    wait_for(lambda: list(desk.models.held) == ["b"])
    other.release()
    desk.close()


def test_socket_lies_where_only_this_user_can_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(runtime_dir.tempfile, "gettempdir", lambda: folder)
        found = model_socket()
        assert found.parent.stat().st_mode & 0o777 == 0o700
        assert model_socket() == found
        found.parent.chmod(0o755)
        with pytest.raises(ConfigurationError, match="not a directory of this user alone"):
            model_socket()
