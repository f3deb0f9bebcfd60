"""Which model is meant where only sizes matter."""

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_profiling import blank_model
from tetriserve_profiling.blank_model import without_weights


@pytest.fixture
def made(monkeypatch, tmp_path):
    """What was made, as (name, directory)."""
    monkeypatch.setenv("TETRISERVE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(
        blank_model, "_make_blank_model", lambda name, directory: (calls.append(name), directory.mkdir(parents=True))
    )
    return calls


def test_a_known_model_is_made_once_and_goes_by_the_name_that_servers_have_for_it(made, tmp_path):
    for name in ("FLUX.1-dev", "black-forest-labs/FLUX.1-dev"):
        settings, known_as = without_weights(ModelSettings(path=name, dtype="bfloat16"))
        assert known_as == "black-forest-labs/FLUX.1-dev" and settings.random_weights and settings.dtype == "bfloat16"
        assert settings.path.startswith(str(tmp_path / "models" / "FLUX.1-dev-blank-"))
    assert made == ["FLUX.1-dev"]


def test_a_folder_made_before_in_another_way_is_not_taken(made, monkeypatch):
    without_weights(ModelSettings(path="FLUX.1-dev"))
    monkeypatch.setattr(blank_model, "_FORMAT", blank_model._FORMAT + 1)
    without_weights(ModelSettings(path="FLUX.1-dev"))
    assert made == ["FLUX.1-dev", "FLUX.1-dev"]


def test_a_folder_and_an_embedded_model_stay_what_they_are(made, tmp_path):
    for path in (str(tmp_path), "demo-flux"):
        assert without_weights(ModelSettings(path=path)) == (ModelSettings(path=path, random_weights=True), path)
    assert made == []


def test_a_model_of_which_nothing_is_known_is_refused_with_those_that_are(made):
    with pytest.raises(ConfigurationError, match=r"'some/model' is not known; allowed: FLUX\.1-dev, SD3"):
        without_weights(ModelSettings(path="some/model"))
