"""From the name of a model to the local directory that holds it."""

import json
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.demo_flux import DEMO_NAME, ensure_demo_flux
from tetriserve_backend.executor.home import tetriserve_home

INDEX = "model_index.json"


def resolve_directory(settings: ModelSettings) -> Path:
    """The local directory of the model, made or fetched where that is allowed.

    Raises:
        ConfigurationError: there is no such model.
    """
    if settings.path == DEMO_NAME:
        return ensure_demo_flux(tetriserve_home())
    directory = Path(settings.path).expanduser()
    if not directory.is_dir():
        directory = _from_hub(settings)
    # Before anything is started: a directory that is no model is an error at once.
    read_family(directory)
    return directory.resolve()


def _from_hub(settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (rarely needed)

    try:
        # Files beside the folders are single-file copies of the same weights.
        path = snapshot_download(
            settings.path, local_files_only=settings.local_files_only, allow_patterns=[INDEX, "*/*"]
        )
    except Exception as error:
        raise ConfigurationError(
            f"model.path: '{settings.path}' is neither a directory nor a model of the hub that can be had "
            f"(local_files_only={settings.local_files_only}): {error}"
        ) from error
    return Path(path)


def read_family(directory: Path) -> str:
    """The class name of the pipeline that a directory in diffusers format holds.

    Raises:
        ConfigurationError: the index is missing or broken.
    """
    try:
        return str(json.loads((directory / INDEX).read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{directory / INDEX}: expected the index of a model in diffusers format: {error}"
        ) from error
