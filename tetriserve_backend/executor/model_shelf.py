"""Which models the ranks hold, and bringing every rank to the same ones."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tetriserve_backend.domain import ConfigurationError, ServerError
from tetriserve_backend.executor import wire
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.worker_spec import ModelSpec


@dataclass(slots=True)
class _Change:
    """A load or an unload on its way: done once no rank is waited for."""

    waiting_for: set[int]
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _RankShelf:
    """What one rank holds. `is_new`: it has not held all that it should since it was born."""

    held: set[str] = field(default_factory=set)
    is_new: bool = True


class ModelShelf:
    """Every rank holds every model. A rank that is born meanwhile is brought up to date before it counts as up.

    Args:
        send: sends a message to a rank; does nothing if it is dead.
        on_up: called with a new rank once it holds every model.
        on_unfit: called with a rank that must be replaced, and the reason.
    """

    def __init__(
        self,
        send: Callable[[int, wire.Message], None],
        on_up: Callable[[int], None],
        on_unfit: Callable[[int, str], None],
    ) -> None:
        self._send, self._on_up, self._on_unfit = send, on_up, on_unfit
        self._wanted: dict[str, ModelSpec] = {}
        self._facts: dict[str, ModelFacts] = {}
        self._ranks: dict[int, _RankShelf] = {}
        self._changes: dict[str, _Change] = {}
        self._failure: str | None = None

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """What every rank should hold."""
        return tuple(self._wanted.values())

    async def load(self, spec: ModelSpec, ranks: Iterable[int], limit_s: float) -> ModelFacts:
        """Have all `ranks` hold one more model, those included that are being born; after an error none holds it.

        Raises:
            ConfigurationError: a rank cannot load it, or there is a model of that name.
            ServerError: the ranks took longer than `limit_s`, or are beyond repair.
        """
        name, ranks = spec.name, tuple(ranks)
        if name in self._wanted:
            raise ConfigurationError(f"model '{name}' is loaded already")
        self._wanted[name] = spec
        try:
            late = await self._change(name, ranks, wire.LoadModel(spec), limit_s)
            if late:
                raise ServerError(f"ranks {sorted(late)} did not load '{name}' within {limit_s:g} s")
        except ServerError:
            await self.unload(name, ranks, limit_s)
            raise
        except asyncio.CancelledError:
            self._wanted.pop(name, None)
            raise
        return self._facts[name]

    async def unload(self, name: str, ranks: Iterable[int], limit_s: float) -> None:
        """Have no rank hold that model any more; returns when its memory is free, or the ranks are beyond repair."""
        if self._wanted.pop(name, None) is None or self._failure is not None:
            return
        change = self._change(name, ranks, wire.UnloadModel(name), limit_s)
        for rank in list(self._ranks):
            self._look(rank)
        with contextlib.suppress(ServerError):
            await change
        self._facts.pop(name, None)

    def fail(self, reason: str) -> None:
        """The ranks are beyond repair: whoever waits for them is told, now and from here on."""
        self._failure = reason
        for change in self._changes.values():
            if not change.done.done():
                change.done.set_exception(ServerError(reason))

    def born(self, rank: int, models: dict[str, ModelFacts]) -> None:
        """A rank is there and holds these models."""
        self._ranks[rank] = _RankShelf(set(models))
        self._facts.update((name, facts) for name, facts in models.items() if name in self._wanted)
        for name in models.keys() - self._wanted.keys():
            self._send(rank, wire.UnloadModel(name))
        for name, spec in self._wanted.items():
            if name in models:
                self._settle(rank, name)
            else:
                self._send(rank, wire.LoadModel(spec))
        for name in self._changes.keys() - self._wanted.keys() - models.keys():
            self._settle(rank, name)
        self._look(rank)

    def lost(self, rank: int) -> None:
        """A rank died; what was waited for of it comes from its successor."""
        self._ranks.pop(rank, None)

    def loaded(self, rank: int, name: str, facts: ModelFacts) -> None:
        """A rank holds one more model."""
        self._ranks[rank].held.add(name)
        if name in self._wanted:
            self._facts[name] = facts
            self._settle(rank, name)
        self._look(rank)

    def failed(self, rank: int, name: str, reason: str) -> None:
        """A rank cannot hold a model."""
        change = self._changes.get(name)
        if change is not None and name in self._wanted:
            if not change.done.done():
                change.done.set_exception(ConfigurationError(f"rank {rank} could not load '{name}': {reason}"))
        elif name in self._wanted:
            self._on_unfit(rank, f"it cannot load '{name}', which others could: {reason}")

    def unloaded(self, rank: int, name: str) -> None:
        """A rank does not hold a model any more."""
        self._ranks[rank].held.discard(name)
        if name not in self._wanted:
            self._settle(rank, name)

    async def _change(self, name: str, ranks: Iterable[int], message: wire.Message, limit_s: float) -> set[int]:
        """Tell every rank and wait for all; those that are not done in time, which will be replaced."""
        if self._failure is not None:
            raise ServerError(self._failure)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes[name] = change = _Change(set(ranks), done)
        for rank in self._ranks:
            self._send(rank, message)
        try:
            await asyncio.wait_for(done, limit_s)
        except (TimeoutError, asyncio.TimeoutError):
            for rank in sorted(change.waiting_for):
                self._on_unfit(rank, f"no answer to {message.kind} of '{name}' within {limit_s:g} s")
            return change.waiting_for
        finally:
            if self._changes.get(name) is change:
                del self._changes[name]
        return set()

    def _settle(self, rank: int, name: str) -> None:
        change = self._changes.get(name)
        if change is not None:
            change.waiting_for.discard(rank)
            if not change.waiting_for and not change.done.done():
                change.done.set_result(None)

    def _look(self, rank: int) -> None:
        """Tell of a new rank that holds all that it should."""
        shelf = self._ranks[rank]
        if shelf.is_new and shelf.held >= self._wanted.keys():
            shelf.is_new = False
            self._on_up(rank)
