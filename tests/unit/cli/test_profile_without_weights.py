"""A model whose weights are not there is measured as the command line says, and its table is the true model's."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.cli.fake_ranks import FakeRanks
from tetriserve_backend.cli.app import app
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.latency_table import LatencyTable

HUB_ID = "black-forest-labs/FLUX.1-dev"
MANUAL = Path(__file__).parents[3] / "profiling" / "README.md"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRanks:
    monkeypatch.chdir(tmp_path)
    return FakeRanks(monkeypatch, tmp_path / "home")


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "FLUX.1-dev", "--random-weights"),
        ("--model", HUB_ID, "--random-weights"),
        ("--model", "FLUX.1-dev", "--set", "model.random_weights=true"),
    ],
)
def test_the_table_of_a_known_model_is_the_one_that_servers_look_for(
    options: tuple[str, ...], ranks: FakeRanks, tmp_path: Path
) -> None:
    command = ["profile", *options, "--resolutions", "256x256", "--repeats", "2", "-o", "a.latency.json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    ((model, _),) = ranks.told
    assert model.random_weights and Path(model.path).parent == tmp_path / "home" / "models"
    table = LatencyTable.load(tmp_path / "a.latency.json")
    assert (table.model, table.source, table.settings["random_weights"]) == (HUB_ID, "measured", True)
    # No path of this machine is in the file.
    assert str(tmp_path) not in (tmp_path / "a.latency.json").read_text()


def test_a_folder_keeps_its_own_name(ranks: FakeRanks, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    command = ["profile", "--model", "model", "--random-weights", "--resolutions", "256x256", "--repeats", "2"]
    result = CliRunner().invoke(app, [*command, "-o", "a.latency.json"])
    assert result.exit_code == 0, result.output
    ((model, _),) = ranks.told
    assert model == ModelSettings(path=str(folder), random_weights=True)
    assert LatencyTable.load(tmp_path / "a.latency.json").model == str(folder)


def test_the_lines_of_the_manual_work_one_after_the_other(ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    # A line that names no file shall not write into the real one.
    monkeypatch.setattr("tetriserve_backend.cli.profile_command.find_model_repository", Path.cwd)
    manual = MANUAL.read_text(encoding="utf-8").partition("**Without weights.**")[2]
    block = manual.partition("```console\n")[2].partition("```")[0].replace("\\\n", "")
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in block.splitlines()]
    assert [command[:3] for command in commands] == [
        ["tetriserve", "profile", "--model"], ["tetriserve", "table", "model"], ["tetriserve", "table", "diff"]
    ]  # fmt: skip
    results = [CliRunner().invoke(app, command[1:]) for command in commands]
    outputs = "\n".join(result.output for result in results)
    # Ranks that compute nothing do not agree with what an H200 should take.
    assert [result.exit_code for result in results] == [0, 0, 1], outputs
    assert "world_size" not in results[2].output and "1024x1024" in results[2].output, outputs
