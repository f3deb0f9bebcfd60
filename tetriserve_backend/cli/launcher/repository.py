"""Renders the model repository with the settings into a private working copy."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import tetriserve_backend
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import to_parameters

MODELS: Final = ("preprocess", "denoise", "postprocess", "tetriserve", "tetriserve_infer")

SERVED_PREFIX: Final = "denoise_"
"""What the names of those models begin with that stand for a served one each."""

_TEMPLATE: Final = f"{SERVED_PREFIX}demo-flux"

_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "preprocess": ("request",),
    "denoise": ("request", "model.device", "executor", "scheduler", "engine", "timeline"),
    "tetriserve_infer": ("front",),
}
"""Which settings each model reads."""

_SERVED_SETTINGS: Final = ("name", "model", "latency_table", "quick_resolutions")


def find_model_repository() -> Path:
    """The checked-in model repository: beside the package in a checkout, inside it when installed.

    Raises:
        ConfigurationError: neither is there.
    """
    package = Path(tetriserve_backend.__file__).parent
    for folder in (package.parent / "model_repository", package / "model_repository"):
        if (folder / "denoise" / "config.pbtxt").is_file():
            return folder
    raise ConfigurationError(f"no model_repository beside or inside {package}: the installation is broken")


def render_repository(source: Path, target: Path, settings: ServerSettings) -> None:
    """Copy the models from `source` to `target`, with `settings` as parameters of their `config.pbtxt`.

    Each served model gets a `denoise_<name>`. Other models in `source` are copied as they are.

    Raises:
        ConfigurationError: a model is missing or its `config.pbtxt` cannot be read.
    """
    missing = [name for name in (*MODELS, _TEMPLATE) if not (source / name / "config.pbtxt").is_file()]
    if missing:
        raise ConfigurationError(f"model repository {source}: no config.pbtxt of {', '.join(missing)}")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", f"{SERVED_PREFIX}*"))
    for name in MODELS:
        # Triton wants a version folder of an ensemble too, and an empty one may get lost on the way.
        (target / name / "1").mkdir(exist_ok=True)
        set_parameters(target / name / "config.pbtxt", to_parameters(settings, _SETTINGS.get(name, ())))
    for model in settings.served_models:
        _render_served(source / _TEMPLATE, target / triton_name(model.name), model)


def triton_name(served_name: str) -> str:
    """The Triton model that stands for a served one."""
    return f"{SERVED_PREFIX}{served_name}"


def _render_served(template: Path, target: Path, settings: ServedModelSettings) -> None:
    shutil.copytree(template, target, ignore=shutil.ignore_patterns("__pycache__"))
    path = target / "config.pbtxt"
    config = read_config(path)
    config.name = target.name
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    set_parameters(path, to_parameters(settings, _SERVED_SETTINGS))


def set_parameters(path: Path, parameters: Mapping[str, str]) -> None:
    """Write `parameters` into a `config.pbtxt`; those of other names stay.

    Raises:
        ConfigurationError: it is not a model configuration.
    """
    config = read_config(path)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    path.write_text(text_format.MessageToString(config), encoding="utf-8")


def read_config(path: Path) -> Any:
    """A `config.pbtxt` as tritonclient's `ModelConfig` message.

    Raises:
        ConfigurationError: it is not a model configuration.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
