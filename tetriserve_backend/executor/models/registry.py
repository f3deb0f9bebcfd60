"""From a directory in diffusers format to the loaded model of its family."""

from pathlib import Path

import torch

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.models.base import DiffusionModel
from tetriserve_backend.executor.models.directory import INDEX, read_family


def load_model(directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """Load the model of a directory in diffusers format onto `device`.

    Raises:
        ConfigurationError: no such format, or a family that is not supported.
    """
    family = read_family(directory)
    if family == "FluxPipeline":
        from tetriserve_backend.executor.models.flux import FluxModel  # noqa: PLC0415  (one family is loaded)

        return FluxModel.load(directory, settings, device, dtype)
    raise ConfigurationError(f"{directory / INDEX}: _class_name: '{family}'; supported: FluxPipeline")
