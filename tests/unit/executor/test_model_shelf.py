"""Every rank comes to hold the same models, whatever dies or fails on the way."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tetriserve_backend.domain import ConfigurationError, ServerError
from tetriserve_backend.executor import wire
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.model_shelf import ModelShelf
from tetriserve_backend.executor.worker_spec import ModelSpec

FACTS = ModelFacts(64, 64, {}, supports_negative_prompt=False, default_guidance_scale=3.5)
RANKS = range(2)


def spec(name: str) -> ModelSpec:
    return ModelSpec(name, f"/models/{name}", ModelSettings(), "float32")


class Ranks:
    """Two ranks that do what they are told when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, wire.Message]] = []
        self.up: list[int] = []
        self.unfit: list[tuple[int, str]] = []
        self.shelf = ModelShelf(
            lambda rank, message: self.sent.append((rank, message)),
            self.up.append,
            lambda rank, reason: self.unfit.append((rank, reason)),
        )
        for rank in RANKS:
            self.shelf.born(rank, {})
        assert self.up == [0, 1]
        self.up.clear()

    async def begin(self, change: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(change)
        await asyncio.sleep(0)
        return task

    async def load(self, name: str) -> None:
        loading = await self.begin(self.shelf.load(spec(name), RANKS, 5.0))
        for rank in RANKS:
            self.shelf.loaded(rank, name, FACTS)
        assert await loading == FACTS
        self.sent.clear()


def test_a_model_is_there_when_every_rank_has_it_and_gone_when_none_has() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        loading = await ranks.begin(ranks.shelf.load(spec("a"), RANKS, 5.0))
        assert ranks.sent == [(rank, wire.LoadModel(spec("a"))) for rank in RANKS]
        ranks.shelf.loaded(1, "a", FACTS)
        await asyncio.sleep(0)
        assert not loading.done()
        ranks.shelf.loaded(0, "a", FACTS)
        assert await loading == FACTS
        ranks.sent.clear()
        unloading = await ranks.begin(ranks.shelf.unload("a", RANKS, 5.0))
        assert ranks.sent == [(rank, wire.UnloadModel("a")) for rank in RANKS]
        assert ranks.shelf.models == ()
        for rank in RANKS:
            assert not unloading.done()
            ranks.shelf.unloaded(rank, "a")
            await asyncio.sleep(0)
        await unloading
        assert ranks.up == []

    asyncio.run(scenario())


def test_a_rank_that_cannot_load_a_model_leaves_none_with_it() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        await ranks.load("a")
        loading = await ranks.begin(ranks.shelf.load(spec("b"), RANKS, 5.0))
        ranks.shelf.loaded(0, "b", FACTS)
        ranks.shelf.failed(1, "b", "no room")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not loading.done(), "rank 0 has not freed the memory yet"
        for rank in RANKS:
            ranks.shelf.unloaded(rank, "b")
        with pytest.raises(ConfigurationError, match="rank 1 could not load 'b': no room"):
            await loading
        assert ranks.shelf.models == (spec("a"),)
        assert ranks.unfit == []

    asyncio.run(scenario())


def test_a_rank_that_dies_while_it_loads_is_waited_for_in_its_next_life() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        await ranks.load("a")
        loading = await ranks.begin(ranks.shelf.load(spec("b"), RANKS, 5.0))
        ranks.shelf.loaded(0, "b", FACTS)
        ranks.shelf.lost(1)
        ranks.sent.clear()
        # It was born before the pool knew of the new model.
        ranks.shelf.born(1, {"a": FACTS})
        assert ranks.sent == [(1, wire.LoadModel(spec("b")))]
        assert (ranks.up, loading.done()) == ([], False)
        ranks.shelf.loaded(1, "b", FACTS)
        await loading
        assert ranks.up == [1]

    asyncio.run(scenario())


def test_a_rank_that_is_born_with_a_model_that_has_gone_drops_it() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        await ranks.load("a")
        ranks.shelf.lost(1)
        unloading = await ranks.begin(ranks.shelf.unload("a", RANKS, 5.0))
        ranks.shelf.unloaded(0, "a")
        ranks.sent.clear()
        ranks.shelf.born(1, {"a": FACTS})
        assert ranks.sent == [(1, wire.UnloadModel("a"))]
        await asyncio.sleep(0)
        assert not unloading.done()
        ranks.shelf.unloaded(1, "a")
        await unloading

    asyncio.run(scenario())


def test_a_new_rank_that_cannot_load_what_others_hold_is_replaced() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        await ranks.load("a")
        ranks.shelf.lost(0)
        ranks.shelf.born(0, {})
        ranks.shelf.failed(0, "a", "no room")
        ((rank, reason),) = ranks.unfit
        assert rank == 0
        assert "no room" in reason
        assert ranks.up == []

    asyncio.run(scenario())


def test_ranks_that_do_not_answer_in_time_are_replaced_and_the_model_is_not_there() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        loading = await ranks.begin(ranks.shelf.load(spec("a"), RANKS, 0.05))
        ranks.shelf.loaded(0, "a", FACTS)
        while not ranks.unfit:
            await asyncio.sleep(0.01)
        assert [rank for rank, _ in ranks.unfit] == [1]
        ranks.shelf.unloaded(0, "a")
        ranks.shelf.lost(1)
        ranks.shelf.born(1, {})
        with pytest.raises(ServerError, match=r"ranks \[1\] did not load 'a'"):
            await loading
        assert ranks.shelf.models == ()

    asyncio.run(scenario())


def test_nobody_waits_for_ranks_that_cannot_be_had_any_more() -> None:
    async def scenario() -> None:
        ranks = Ranks()
        loading = await ranks.begin(ranks.shelf.load(spec("a"), RANKS, 0.05))
        ranks.shelf.fail("rank 1 is given up")
        with pytest.raises(ServerError, match="given up"):
            await loading
        with pytest.raises(ServerError, match="given up"):
            await ranks.shelf.load(spec("b"), RANKS, 5.0)

    asyncio.run(scenario())
