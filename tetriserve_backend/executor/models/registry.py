"""From a directory in diffusers format to the loaded model of its family."""

import gc
import importlib
from pathlib import Path

import torch

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.memory_budget import DeviceMemory, check_device_memory
from tetriserve_backend.executor.models.base import DiffusionModel
from tetriserve_backend.executor.models.directory import INDEX, read_family
from tetriserve_backend.executor.models.text_encoders import keeps_text_encoders
from tetriserve_backend.executor.tensors import dtype_name

_FAMILIES = {
    "FluxPipeline": ("tetriserve_backend.executor.models.flux", "FluxModel"),
    "StableDiffusion3Pipeline": ("tetriserve_backend.executor.models.sd3", "Sd3Model"),
}


def load_model(directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """Load the model of a directory in diffusers format onto `device`.

    Raises:
        ConfigurationError: no such format, a family that is not supported, settings that it cannot follow, or too
            little memory on the device.
    """
    family = read_family(directory)
    if family not in _FAMILIES:
        raise ConfigurationError(
            f"{directory / INDEX}: _class_name: '{family}'; supported: {', '.join(sorted(_FAMILIES))}"
        )
    if device.type == "cuda":
        # What the allocator keeps of freed tensors, other models' included, would count as used.
        gc.collect()
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(device)
        kept = keeps_text_encoders(settings, device)
        check_device_memory(directory, settings, dtype_name(dtype), DeviceMemory(str(device), free_bytes, kept))
    module, name = _FAMILIES[family]
    # Each import takes a second or more, so only what is needed.
    model: DiffusionModel = getattr(importlib.import_module(module), name).load(directory, settings, device, dtype)
    return model
