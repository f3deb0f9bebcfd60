"""What `tetriserve profile` makes of its options, and by which exit status it tells."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.profiling.fake_executor import FakeExecutor
from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.profile_command import table_name
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.partial_file import partial_path
from tetriserve_profiling.record import Identity


@pytest.mark.parametrize(
    ("conditions", "name"),
    [
        (Conditions(), "FLUX.1_dev-8xNVIDIA_H100-bfloat16"),
        (Conditions("flash_3", compile=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-flash_3-compiled"),
        (Conditions(threads_per_rank=4, pin_ranks=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-4threads-pinned"),
    ],
)
def test_tables_of_different_conditions_have_different_names(conditions: Conditions, name: str) -> None:
    identity = Identity("org/FLUX.1-dev", "b", "NVIDIA H100", 8, "bfloat16", 512, {}, {})
    assert table_name(identity, conditions) == f"{name}.latency.json"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--resolutions", "256"], "--resolutions 256: '256' is not a resolution; allowed: HEIGHTxWIDTH"),
        (["--resolutions", "250x256"], "both sides must be positive multiples of 16"),
        (["--batches", "2,x"], "--batches 2,x: allowed: numbers of at least 1"),
        (["--degrees", "0"], "--degrees 0: allowed: numbers of at least 1"),
        (["--set", "model.dtyp=float16"], "dtyp"),
        (["-c", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_options_are_named_and_start_nothing(options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["profile", *options])
    assert result.exit_code == 2
    assert told in result.output


def profile(executor: FakeExecutor, table: Path) -> tuple[int, str]:
    """Exit status and output of a profile of these ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelExecutor, "alone", lambda model, settings: executor)
        options = ["--resolutions", "256x256,512x512", "--batches", "1", "--repeats", "2", "--out", str(table)]
        result = CliRunner().invoke(app, ["profile", *options])
    return result.exit_code, result.output


def test_the_table_tells_under_which_conditions_it_was_measured(tmp_path: Path) -> None:
    status, output = profile(FakeExecutor(), tmp_path / "a.latency.json")
    assert status == 0, output
    settings = LatencyTable.load(tmp_path / "a.latency.json").settings
    assert Conditions().to_dict().items() <= settings.items()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be taken up"),
        (
            json.dumps({
                "schema": "tetriserve.latency_profile/1", "identity": {}, "record": {"entries": [], "absent": []}
            }),
            "measured with other",
        ),
    ],
)  # fmt: skip
def test_what_was_kept_of_another_profile_is_a_wrong_file(tmp_path: Path, content: str, told: str) -> None:
    table = tmp_path / "a.latency.json"
    partial_path(table).write_text(content)
    status, output = profile(FakeExecutor(), table)
    assert status == 2 and told in output and "--fresh" in output
    assert partial_path(table).read_text() == content


def test_ranks_on_different_devices_are_no_wrong_file(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.device_names[1] = "Another GPU"
    status, output = profile(executor, tmp_path / "a.latency.json")
    assert status == 1 and "different devices" in output
