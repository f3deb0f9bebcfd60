"""Which of xfuser's attention backends computes on a device."""

import importlib.util

import torch
from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType

from tetriserve_backend.domain import ConfigurationError

AUTO = "auto"
_HALF = (torch.bfloat16, torch.float16)
_ON_CPU = ("SDPA", "SDPA_MATH")
_ANY_DTYPE = ("SDPA", "SDPA_MATH", "SDPA_EFFICIENT")
# The packages that xfuser takes these from; without them it registers no function.
_PACKAGES = {"FLASH": "flash_attn", "FLASH_3": "flash_attn_interface", "FLASH_4": "flash_attn.cute"}


def choose_attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The name that xfuser has for the configured backend; None leaves the choice to xfuser.

    Args:
        name: `auto`, or a backend's name in lower or upper case: `sdpa`, `cudnn`, `flash`, …
        device: where it is to compute.
        dtype: what it is to compute with.

    Raises:
        ConfigurationError: there is no such backend, or it cannot work on this device with this dtype.
    """
    if name == AUTO:
        # xfuser's own choice on CUDA needs a half-precision dtype.
        return None if device.type == "cuda" and dtype in _HALF else "SDPA"
    wanted = name.upper()
    usable = [AUTO, *(backend.lower() for backend in _usable(device, dtype))]
    if wanted.lower() in usable:
        return wanted
    reason = _why_not(wanted, device, dtype)
    raise ConfigurationError(f"model.attention_backend: '{name}' {reason}; allowed here: {', '.join(usable)}")


def _usable(device: torch.device, dtype: torch.dtype) -> list[str]:
    return sorted(kind.name for kind in ATTENTION_FUNCTION_REGISTRY if _fits(kind.name, device, dtype))


def _fits(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    if device.type == "cpu":
        return backend in _ON_CPU
    if backend == "CUDNN" and not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype in _HALF or backend in _ANY_DTYPE


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    if backend not in AttentionBackendType.__members__:
        return "is not known to xfuser"
    package = _PACKAGES.get(backend)
    if package is not None and importlib.util.find_spec(package.split(".")[0]) is None:
        return f"needs the package '{package.split('.')[0]}', which is not installed"
    if device.type == "cpu":
        return "does not work on the CPU"
    if dtype not in _HALF:
        return f"does not work in {str(dtype).removeprefix('torch.')}"
    return "is not available here"
