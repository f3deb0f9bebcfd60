"""The parts of a pipeline: read from its directory, or of its sizes with random weights."""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.models.directory import INDEX
from tetriserve_backend.executor.models.text_encoders import TEXT_ENCODERS, keeps_text_encoders, place_parts

_LOADING: Mapping[str, Any] = {"local_files_only": True, "use_safetensors": True}
"""For every `from_pretrained`: no network, and no format that can run code."""

_HOST = torch.device("cpu")
_TRANSFORMER = "transformer"
_SEED = 0


def load_transformer(
    kind: type[Any], directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype
) -> Any:
    """The transformer of a directory in diffusers format, in host memory unless its weights are made on `device`.

    Args:
        kind: its class, of diffusers or derived from one of these.
        directory: of the pipeline.
        settings: whether weights are read or made.
        device: of this rank.
        dtype: to compute in.
    """
    if settings.random_weights:
        return _make(kind, directory / _TRANSFORMER, device, dtype)
    return kind.from_pretrained(directory, subfolder=_TRANSFORMER, torch_dtype=dtype, **_LOADING)


def load_pipeline(
    kind: type[Any],
    directory: Path,
    transformer: Any,
    settings: ModelSettings,
    device: torch.device,
    *,
    without: frozenset[str] = frozenset(),
) -> Any:
    """The whole pipeline on `device`, but for text encoders that are not to be kept there.

    Args:
        kind: its class, of diffusers.
        directory: in diffusers format.
        transformer: as `load_transformer` gave it.
        settings: whether weights are read or made, and where text encoders are kept.
        device: of this rank.
        without: parts that are left out.
    """
    parts: dict[str, Any] = {_TRANSFORMER: transformer, **dict.fromkeys(without)}
    dtype, keeps_encoders = transformer.dtype, keeps_text_encoders(settings, device)
    if settings.random_weights:
        for name, made in _kinds_with_weights(directory).items():
            if name not in parts:
                # There may be no room on the device, not even for a while.
                is_kept_there = keeps_encoders or name not in TEXT_ENCODERS
                parts[name] = _make(made, directory / name, device if is_kept_there else _HOST, dtype)
    pipeline = kind.from_pretrained(directory, torch_dtype=dtype, **_LOADING, **parts)
    place_parts(pipeline, device, keeps_encoders)
    return pipeline


def _kinds_with_weights(directory: Path) -> dict[str, type[torch.nn.Module]]:
    """By name, the classes of a pipeline's parts that are networks."""
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    found = {
        name: getattr(importlib.import_module(part[0]), part[1])
        for name, part in index.items()
        if isinstance(part, list) and None not in part
    }
    return {name: kind for name, kind in found.items() if issubclass(kind, torch.nn.Module)}


def _make(kind: type[Any], folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A network of the sizes in a folder's config.json; the same on every rank, as ranks of one step must agree.

    Made on another device it is another. Text encoders may be so on some ranks: what a prompt becomes is one rank's
    work, and all that take part in the request get it from there.
    """
    with _made_on(device, dtype):
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(folder, local_files_only=True)).eval()
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True)).eval()


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.manual_seed(_SEED)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(usual)
