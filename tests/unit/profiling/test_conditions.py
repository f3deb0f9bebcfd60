"""The settings that a table's times depend on."""

import pytest

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


def test_ranks_that_hold_a_pace_are_another_condition() -> None:
    held = Conditions.of(ModelSettings(pace_table="a.latency.json"), ExecutorSettings(), "cpu", "float32")
    assert held == Conditions(pace_held=True) and held.words == ("held",)
    assert held.differences(Conditions().to_dict()) == ["pace_held (False, here True)"]


def test_differences_are_told_with_both_values() -> None:
    table = {"compile": True, "threads_per_rank": 1, "profile": {"repeats": 5}}
    assert Conditions(threads_per_rank=2).differences(table) == [
        "compile (True, here False)",
        "threads_per_rank (1, here 2)",
    ]
    assert Conditions(pin_ranks=True).differences({}) == []
