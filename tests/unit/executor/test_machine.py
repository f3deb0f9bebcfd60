"""What ranks have to compute with: cores, and what a container may use of them."""

import os
from pathlib import Path

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor import machine
from tetriserve_backend.executor.config import ExecutorSettings
from tetriserve_backend.executor.container import core_quota, memory_left_bytes
from tetriserve_backend.executor.machine import Machine, inspect_machine


@pytest.fixture(autouse=True)
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    limit_to(None, monkeypatch)


def limit_to(quota: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_quota", lambda: quota)


@pytest.mark.parametrize(
    ("ranks", "threads", "quota", "enough"),
    [(6, 1, None, True), (7, 1, None, False), (3, 2, None, True), (2, 4, None, False), (4, 1, 4.0, True),
     (4, 1, 3.5, False), (6, 1, 64.0, True), (7, 1, 64.0, False)],
)  # fmt: skip
def test_ranks_have_a_core_for_each_thread_if_these_are_there_and_may_be_used(
    ranks: int, threads: int, quota: float | None, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_to(quota, monkeypatch)
    settings = ExecutorSettings(world_size=ranks, threads_per_rank=threads)
    assert inspect_machine("cpu", settings) == Machine("cpu", ranks, has_core_per_thread=enough)


def test_pinned_ranks_need_cores_of_their_own() -> None:
    settings = ExecutorSettings(world_size=3, threads_per_rank=3, pin_ranks=True)
    with pytest.raises(ConfigurationError, match="allowed: as many as there are cores, 6"):
        inspect_machine("cpu", settings)


@pytest.mark.parametrize(("text", "cores"), [("250000 100000\n", 2.5), ("max 100000\n", None), (None, None)])
def test_a_container_tells_how_many_cores_may_be_used(tmp_path: Path, text: str | None, cores: float | None) -> None:
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert core_quota(tmp_path) == cores


def test_memory_that_a_container_leaves_counts_caches_as_free(tmp_path: Path) -> None:
    assert memory_left_bytes(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    for limit, left in (("max", None), ("1000", 500), ("300", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory_left_bytes(tmp_path) == left
