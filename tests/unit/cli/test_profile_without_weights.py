"""A model whose weights are not there is measured as the command line says, and its table is the true model's."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.cli.fake_ranks import FakeRanks
from tetriserve_backend.cli.app import app
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.latency_table import LatencyTable

HUB_ID = "black-forest-labs/FLUX.1-dev"


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
