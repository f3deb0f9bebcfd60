"""The settings that a table's times depend on."""

from pathlib import Path

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_profiling.conditions import Conditions


@pytest.mark.parametrize(
    ("name", "device", "dtype", "backend"),
    [
        ("auto", "cpu", "float32", "auto"),
        ("SDPA", "cpu", "float32", "auto"),
        ("sdpa", "cuda", "float32", "auto"),
        ("sdpa", "cuda", "bfloat16", "sdpa"),
        ("sdpa_math", "cpu", "float32", "sdpa_math"),
        ("auto", "cuda", "bfloat16", "auto"),
    ],
)
def test_a_backend_that_auto_means_anyway_is_no_other_condition(
    name: str, device: str, dtype: str, backend: str
) -> None:
    found = Conditions.of(ModelSettings(attention_backend=name), ExecutorSettings(), device, dtype)
    assert found == Conditions(attention_backend=backend)


def test_threads_and_pinning_count_on_the_cpu_only() -> None:
    executor = ExecutorSettings(threads_per_rank=2, pin_ranks=True)
    assert Conditions.of(ModelSettings(), executor, "cpu", "float32") == Conditions(threads_per_rank=2, pin_ranks=True)
    assert Conditions.of(ModelSettings(), executor, "cuda", "bfloat16") == Conditions()


def test_each_pace_that_ranks_hold_is_a_condition_of_its_own(tmp_path: Path) -> None:
    found = []
    for number, table in enumerate(
        (small_table(), small_table(dispatch_s=0.1), small_table().corrected(lambda _: 2.0))
    ):
        table.save(tmp_path / f"{number}.latency.json")
        settings = ModelSettings(pace_table=str(tmp_path / f"{number}.latency.json"))
        found.append(Conditions.of(settings, ExecutorSettings(), "cpu", "float32"))
    assert found[0] == found[1] == Conditions(pace=found[0].pace) and found[0].words == (f"held-{found[0].pace}",)
    assert found[2].differences(found[0].to_dict()) == [f"pace ({found[0].pace!r}, here {found[2].pace!r})"]
    assert found[0].differences(Conditions().to_dict()) == [f"pace (None, here {found[0].pace!r})"]


def test_differences_are_told_with_both_values() -> None:
    table = {"compile": True, "threads_per_rank": 1, "profile": {"repeats": 5}}
    assert Conditions(threads_per_rank=2).differences(table) == [
        "compile (True, here False)",
        "threads_per_rank (1, here 2)",
    ]
    assert Conditions(pin_ranks=True).differences({}) == []
