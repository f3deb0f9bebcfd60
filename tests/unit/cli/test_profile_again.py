"""The command that an error about a table prints measures it anew in the same way, and is not refused."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.cli.fake_ranks import FakeRanks
from tetriserve_backend.cli.app import app
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.executor.machine import decide_dtype
from tetriserve_backend.latency_table import LatencyTable, remedy

AS_SHORT_AS_IT_CAN_BE = ("--repeats", "2", "--warmup", "1")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRanks:
    return FakeRanks(monkeypatch, tmp_path / "home")


def profile(*options: str) -> None:
    result = CliRunner().invoke(app, ["profile", *options, *AS_SHORT_AS_IT_CAN_BE])
    assert result.exit_code == 0, result.output


def fix_of(table: Path) -> str:
    """The way out that is told where the table lacks 512x512."""
    with pytest.raises(LatencyTableError) as error:
        LatencyTable.load(table).step_s(512, 512, 2)
    return str(error.value).partition("; fix: ")[2]


@pytest.mark.parametrize(
    "how",
    [
        "",
        "--model org/other",
        "--set model.dtype=bfloat16",
        "--set model.compile=true",
        "--set model.attention_backend=cudnn",
        "--set model.max_sequence_length=32",
        "--set model.load_t5=false",
        "--set model.text_encoder_ranks=0",
        "--set model.vae_tiling_above=null",
        "--set model.vae_tiling_above=65536",
        "--set executor.threads_per_rank=2",
        "--set executor.pin_ranks=true --set executor.threads_per_rank=3 --set model.compile=true",
        "--world-size 4",
        "--model FLUX.1-dev --random-weights",
        "--model FOLDER --random-weights --set model.dtype=float16",
    ],
)
def test_the_command_that_an_error_names_gives_the_table_what_it_lacks(
    how: str, ranks: FakeRanks, tmp_path: Path
) -> None:
    table = tmp_path / "a.latency.json"
    options = [str(tmp_path) if word == "FOLDER" else word for word in how.split()]
    profile("--resolutions", "256x256", "--batches", "1", "-o", str(table), *options)
    program, *command = shlex.split(fix_of(table).strip("`"))
    result = CliRunner().invoke(app, [*command, *AS_SHORT_AS_IT_CAN_BE])
    assert (program, result.exit_code) == ("tetriserve", 0), result.output
    again = LatencyTable.load(table)
    assert again.resolutions == ((256, 256), (512, 512)) and again.step_s(512, 512, 2) > 0
    (model, executor), (model_again, executor_again) = ranks.told
    assert model_again == model.model_copy(update={"dtype": decide_dtype(model, "cpu")})
    assert executor_again.model_copy(update={"world_size": executor.world_size}) == executor


def test_all_that_a_table_holds_of_the_settings_is_known_with_its_default(ranks: FakeRanks, tmp_path: Path) -> None:
    profile("--resolutions", "256x256", "-o", str(tmp_path / "a.latency.json"))
    held = dict(LatencyTable.load(tmp_path / "a.latency.json").settings)
    assert (held.pop("random_weights"), held.pop("pace")) == (False, None)
    del held["profile"]
    assert held == remedy._MODEL_DEFAULTS | remedy._EXECUTOR_DEFAULTS


def test_of_a_held_pace_the_file_is_asked_for(ranks: FakeRanks, tmp_path: Path) -> None:
    pace, table = tmp_path / "pace.latency.json", tmp_path / "a.latency.json"
    profile("--resolutions", "256x256", "-o", str(pace))
    profile("--resolutions", "256x256", "-o", str(table), "--set", f"model.pace_table={pace}")
    command, more = fix_of(table).removeprefix("`").split("`", 1)
    assert more == ", with `--set model.pace_table=` and the file of the times that its ranks kept to"
    _, *words = shlex.split(command)
    profile(*words[1:], "--set", f"model.pace_table={pace}")
    assert LatencyTable.load(table).resolutions == ((256, 256), (512, 512))


def test_what_a_hand_has_written_into_the_settings_is_let_be(ranks: FakeRanks, tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    profile("--resolutions", "256x256", "-o", str(table))
    raw = json.loads(table.read_text())
    table.write_text(json.dumps(raw | {"dtype": "fp8", "settings": {"note": "mine", "clocks": {"sm": 1980}}}))
    assert "--set" not in fix_of(table)
