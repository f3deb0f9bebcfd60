"""From the name of a model to the local directory that holds it."""

import json
from pathlib import Path
from typing import Any

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.demo_models import DEMO_MODELS, ensure_demo
from tetriserve_backend.executor.home import tetriserve_home

INDEX = "model_index.json"
_NEVER_LOADED = ["*.bin", "*.pt", "*.ckpt", "*.msgpack", "*.onnx*", "*.fp16.*", "*.non_ema.*"]


def resolve_directory(settings: ModelSettings) -> Path:
    """The local directory of the model, made or fetched where that is allowed.

    Raises:
        ConfigurationError: there is no such model.
    """
    if settings.path in DEMO_MODELS:
        return ensure_demo(settings.path, tetriserve_home())
    directory = Path(settings.path).expanduser()
    if not directory.is_dir():
        directory = _from_hub(settings)
    # Before anything is started: a directory that is no model is an error at once.
    read_family(directory)
    return directory.resolve()


def _from_hub(settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (rarely needed)

    try:
        # Files beside the folders are single-file copies of the same weights, and some in them variants.
        path = snapshot_download(
            settings.path,
            local_files_only=settings.local_files_only,
            allow_patterns=[INDEX, "*/*"],
            ignore_patterns=_NEVER_LOADED,
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
    family = _read_index(directory).get("_class_name")
    if not isinstance(family, str):
        raise ConfigurationError(f"{directory / INDEX}: _class_name: expected the name of a pipeline")
    return family


def absent_parts(directory: Path) -> frozenset[str]:
    """The parts that the pipeline of a directory was saved without.

    Raises:
        ConfigurationError: the index is missing or broken.
    """
    return frozenset(name for name, part in _read_index(directory).items() if part == [None, None])


def _read_index(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / INDEX).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{directory / INDEX}: expected the index of a model in diffusers format: {error}"
        ) from error
