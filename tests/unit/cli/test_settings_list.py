"""`tetriserve serve --settings`."""

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.settings_list import list_settings
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import build_settings, merge, parse_assignment


def leaves(values: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
    return found


def test_every_key_is_listed_once() -> None:
    keys = [setting.key for setting in list_settings()]
    assert len(keys) == len(set(keys))
    assert set(keys) == leaves(ServerSettings().model_dump())


@pytest.mark.parametrize("kind", [ServerSettings, ServedModelSettings])
def test_every_setting_has_a_meaning(kind: type[BaseModel]) -> None:
    assert [setting.key for setting in list_settings(kind) if not setting.meaning] == []


def test_defaults_can_be_given_as_they_are_listed() -> None:
    layers = [parse_assignment(f"{setting.key}={setting.default}") for setting in list_settings()]
    assert build_settings(merge(layers)) == ServerSettings()


def test_text_of_several_lines_is_whole_and_speaks_of_null() -> None:
    meanings = {setting.key: setting for setting in list_settings()}
    world_size = meanings["executor.world_size"]
    assert yaml.safe_load(world_size.default) is None
    assert world_size.meaning == "ranks; null means 2 on CPU and every visible GPU on CUDA."
    assert meanings["model.dtype"].meaning.endswith("Allowed: auto, float32, bfloat16, float16.")
    assert meanings["engine.admission"].meaning.endswith("Allowed: best_effort, reject.")
    assert meanings["request.width"].meaning == meanings["request.height"].meaning == "pixels, multiples of 16."


def test_option_prints_the_list_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("tetriserve_backend.cli.serve.Supervisor")
    finished = CliRunner().invoke(app, ["serve", "--settings"])
    assert finished.exit_code == 0, finished.output
    assert "[engine.drift]\nengine.drift.correction = true\n" in finished.stdout
    assert "supervisor.ready_timeout_s = 1800.0" in finished.stdout
