"""Settings: precedence, unknown keys, and the way through config.pbtxt."""

from pathlib import Path

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import (
    build_settings,
    from_parameters,
    merge,
    nested,
    parse_assignment,
    read_settings_file,
    to_parameters,
)

SECTIONS = tuple(ServerSettings.model_fields)


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("scheduler: {policy: rssp, step_granularity: 3}\nengine: {lead_s: 0.1}\n")
    layers = [read_settings_file(path), parse_assignment("scheduler.policy=fixed-sp2"), nested("engine.lead_s", 0.2)]
    settings = build_settings(merge(layers))
    assert (settings.scheduler.policy, settings.scheduler.step_granularity) == ("fixed-sp2", 3)
    assert settings.engine.lead_s == 0.2


def test_values_of_assignments_are_yaml() -> None:
    tree = merge([parse_assignment("scheduler.rssp_degrees={512x512: 2}"), parse_assignment("timeline=null")])
    settings = build_settings(tree)
    assert settings.scheduler.rssp_degrees == {"512x512": 2}
    assert settings.timeline is None


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("colour=red", ("colour: unknown setting", "allowed: ", "scheduler", "timeline")),
        ("engine.speed=1", ("engine.speed: unknown setting", "engine.lead_s")),
        ("engine.lead_s=fast", ("engine.lead_s", "number", "'fast'")),
        ("request.height=100", ("request.height", "multiple of 16", "100")),
        ("quick_resolutions=[100x100]", ("quick_resolutions", "multiples of 16")),
        ("quick_resolutions=[big]", ("quick_resolutions", "HEIGHTxWIDTH")),
        ("engine=7", ("engine", "7")),
        ("request.num_inference_steps=500", ("request", "500", "max_num_inference_steps = 200")),
        ("request.latency_threshold=1e6", ("request.latency_threshold", "86400")),
    ],
)
def test_wrong_setting_is_named_with_what_is_allowed(assignment: str, expected: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_settings(parse_assignment(assignment))
    for text in expected:
        assert text in str(caught.value)


@pytest.mark.parametrize("text", ["policy", "=x", "a.b=[1"])
def test_assignment_without_key_or_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_assignment(text)


@pytest.mark.parametrize("content", ["- a\n", "a: [", "7"])
def test_file_that_holds_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"settings\.yaml"):
        read_settings_file(path)


def test_missing_file_is_refused_and_empty_file_means_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        read_settings_file(tmp_path / "nowhere.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert build_settings(read_settings_file(tmp_path / "empty.yaml")) == ServerSettings()


def test_settings_survive_the_way_through_parameters() -> None:
    settings = build_settings(
        {
            "model": {"path": "a: tricky, [path]", "max_sequence_length": 64},
            "scheduler": {"rssp_degrees": {"512x512": 2}, "elastic_scale_up": False},
            "quick_resolutions": ["64x64", "128x96"],
            "timeline": "/tmp/on",
            "request": {"output_format": "webp", "ignored_parameters": ["traceparent"]},
        }
    )
    parameters = to_parameters(settings, SECTIONS)
    assert parameters["scheduler.elastic_scale_up"] == "false"
    assert from_parameters(parameters) == settings


def test_models_take_what_they_do_not_say_from_the_common_settings() -> None:
    settings = build_settings(
        {
            "model": {"local_files_only": False, "dtype": "bfloat16"},
            "quick_resolutions": ["64x64"],
            "models": [
                {"name": "flux", "model": {"path": "org/FLUX.1-dev"}, "latency_table": "t.json"},
                {"model": {"path": "org/sd3", "dtype": "float32"}, "quick_resolutions": ["128x128"]},
            ],
        }
    )
    flux, sd3 = settings.served_models
    assert (flux.name, flux.latency_table, flux.quick_resolutions) == ("flux", "t.json", ("64x64",))
    assert (flux.model.dtype, flux.model.local_files_only) == ("bfloat16", False)
    assert (sd3.name, sd3.latency_table, sd3.quick_resolutions) == ("sd3", None, ("128x128",))
    assert (sd3.model.dtype, sd3.model.local_files_only) == ("float32", False)


def test_one_model_needs_no_list() -> None:
    (served,) = build_settings({"model": {"path": "/models/FLUX 1"}, "latency_table": "t.json"}).served_models
    assert (served.name, served.model.path, served.latency_table) == ("FLUX_1", "/models/FLUX 1", "t.json")


def test_latency_table_of_several_models_is_refused() -> None:
    models = [{"model": {"path": "a"}}, {"model": {"path": "b"}}]
    with pytest.raises(ConfigurationError, match="latency_table: is of one model"):
        build_settings({"models": models, "latency_table": "t.json"})


def test_unknown_parameter_of_a_model_configuration_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"scheduler\.polcy: unknown setting"):
        from_parameters({"scheduler.polcy": "rssp"})
