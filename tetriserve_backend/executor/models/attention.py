"""Which of xfuser's attention backends computes on a device."""

import torch
from xfuser.envs import PACKAGES_CHECKER

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.machine import decide_attention_backend

AUTO = "auto"
_HALF = (torch.bfloat16, torch.float16)
_ON_CPU = ("SDPA", "SDPA_MATH")
_ANY_DTYPE = ("SDPA", "SDPA_MATH", "SDPA_EFFICIENT")
# Those of xfuser that compute attention as it is, with the fact by which xfuser knows that the package is there.
# The others compute in lower precision, leave parts out, or are for other accelerators.
_PACKAGE_OF = {"FLASH": "has_flash_attn", "FLASH_3": "has_flash_attn_3", "FLASH_4": "has_flash_attn_4"}
_BACKENDS = ("SDPA", "SDPA_MATH", "SDPA_EFFICIENT", "SDPA_FLASH", "CUDNN", *_PACKAGE_OF)


def choose_attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The name that xfuser has for the configured backend; None leaves the choice to xfuser.

    Args:
        name: `auto`, or a backend's name in lower or upper case: `sdpa`, `cudnn`, `flash`, …
        device: where it is to compute.
        dtype: what it is to compute with.

    Raises:
        ConfigurationError: there is no such backend, or it cannot work on this device with this dtype.
    """
    decided = decide_attention_backend(name, device.type, _name_of(dtype))
    if decided == AUTO:
        return None
    problem = _problem(decided.upper(), device, dtype)
    if problem is None:
        return decided.upper()
    allowed = [AUTO, *(backend.lower() for backend in _BACKENDS if _problem(backend, device, dtype) is None)]
    raise ConfigurationError(f"model.attention_backend: '{name}' {problem}; allowed here: {', '.join(allowed)}")


def _problem(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot be had; None if it can."""
    packages = PACKAGES_CHECKER.get_packages_info()
    if backend not in _BACKENDS:
        return "is not one of the exact attention backends of xfuser"
    if device.type == "cpu" and backend not in _ON_CPU:
        return "does not compute on the CPU"
    if dtype not in _HALF and backend not in _ANY_DTYPE:
        return f"does not compute in {_name_of(dtype)}"
    if backend in _PACKAGE_OF and not packages[_PACKAGE_OF[backend]]:
        return "needs a package that is not installed"
    if backend == "CUDNN" and not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        return "needs cuDNN, which is not there"
    return None


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
