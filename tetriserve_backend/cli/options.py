"""What several commands read from their options: lists, and the server's settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings, parse_resolution
from tetriserve_backend.triton_adapter.settings_sources import (
    build_settings,
    merge,
    nested,
    parse_assignment,
    read_settings_file,
)


def read_settings(config: Path | None, assignments: Sequence[str], options: Mapping[str, object]) -> ServerSettings:
    """Option > `--set` > file > default.

    Args:
        config: YAML file.
        assignments: `key=value`.
        options: by dotted key; None leaves a key to the others.

    Returns:
        The settings; a model's folder is absolute, since the server runs in a folder of its own and names it so.

    Raises:
        ConfigurationError: a file, key or value is wrong; names it.
    """
    layers = [read_settings_file(config)] if config else []
    layers += [parse_assignment(text) for text in assignments]
    layers += [nested(key, value) for key, value in options.items() if value is not None]
    settings = build_settings(merge(layers))
    path = absolute_folder(settings.model.path)
    return settings.model_copy(update={"model": settings.model.model_copy(update={"path": path})})


def choose_model(settings: ServerSettings, name: str | None) -> ServedModelSettings:
    """One of the served models.

    Args:
        settings: with at least one.
        name: of it; None takes the only one.

    Raises:
        ConfigurationError: there are several and none is named, or none has that name; tells the names.
    """
    served = settings.served_models
    chosen = [model for model in served if model.name == name] if name is not None else list(served)
    if len(chosen) != 1:
        problem = "there are several models" if name is None else f"{name} is none of the models"
        raise ConfigurationError(f"--model: {problem}; allowed: {', '.join(model.name for model in served)}")
    model = chosen[0].model
    return chosen[0].model_copy(update={"model": model.model_copy(update={"path": absolute_folder(model.path)})})


def absolute_folder(model: str) -> str:
    """A model's folder by its absolute path; any other model as it is called."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers of at least 1.

    Raises:
        ConfigurationError: it is something else; names the option.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"{option} {text}: allowed: numbers of at least 1, with commas between, such as 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_resolutions(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """`256x256,512x512` as (height, width) in pixels.

    Raises:
        ConfigurationError: it is something else; names the option.
    """
    try:
        return tuple(dict.fromkeys(parse_resolution(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise ConfigurationError(f"{option} {text}: {error}") from error
