"""Where the text encoders of a rank live: on its device, or in host memory that all ranks share."""

from typing import Any

import torch
from accelerate import cpu_offload

from tetriserve_backend.executor.config import ModelSettings

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def keeps_text_encoders(settings: ModelSettings, device: torch.device) -> bool:
    """Whether the rank of this device keeps them there. On the CPU all ranks map one copy anyway."""
    if device.type == "cpu" or settings.text_encoder_ranks is None:
        return True
    # The device of a rank has its number.
    return (device.index or 0) < settings.text_encoder_ranks


def place_parts(pipeline: Any, device: torch.device, keeps_encoders: bool) -> None:
    """Have all parts of a pipeline on `device`, but for text encoders that are not kept there.

    Those, which are in host memory, compute there too: their layers come and go one by one. Of the others some may be
    on `device` already.
    """
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        if name in TEXT_ENCODERS and not keeps_encoders:
            cpu_offload(part, execution_device=device)
        else:
            part.to(device)
