"""Bring-up of xfuser on a machine without an accelerator; on CUDA it is a plain import.

xfuser decides what it can do from the accelerator it sees and refuses to be imported where it sees
none, although all of its sequence parallelism works on CPU tensors over gloo. The bring-up corrects
those decisions before the package is imported; no code of xfuser is replaced but one stub for
kernels that are written in a GPU language.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_SPARGE_MODULE = "xfuser.core.sparge_attention.block_mask"
_MODULES_WITH_PROCESS_GROUP = ("xfuser.model_executor.layers.usp", "xfuser.core.distributed.fp8_comms")


def bring_up(device: str) -> None:
    """Import xfuser so that it works on `device` (`cpu` or `cuda`). Call before any other import of it.

    Raises:
        ImportError: xfuser is not installed.
    """
    if device != "cpu" or "xfuser" in sys.modules:
        importlib.import_module("xfuser")
        return
    _correct_environment(_import_environment())
    _stub_sparge_kernels()
    importlib.import_module("xfuser")
    _give_process_groups()


def _import_environment() -> Any:
    """Import `xfuser.envs` alone: the package's own `__init__` would already act on its answers."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("xfuser is not installed")
    bare_package = ModuleType("xfuser")
    bare_package.__path__ = list(spec.submodule_search_locations)
    bare_package.__spec__ = spec
    sys.modules["xfuser"] = bare_package
    try:
        return importlib.import_module("xfuser.envs")
    finally:
        del sys.modules["xfuser"]


def _correct_environment(envs: Any) -> None:
    # A CUDA build of torch on a machine without a GPU claims CUDA, so the build must not decide.
    envs._is_cuda = lambda: False
    envs._is_hip = lambda: False
    envs.get_device_version = lambda: None
    envs.get_torch_distributed_backend = lambda: "gloo"
    # Without this a coordinator of several ranks believes that its Ulysses degree is 1.
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True


def _stub_sparge_kernels() -> None:
    """The one unconditional import of the Triton compiler sits in kernels that no CPU can run."""

    def get_block_map_meansim(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("sparge attention needs a GPU")

    stub: Any = ModuleType(_SPARGE_MODULE)
    stub.get_block_map_meansim = get_block_map_meansim
    sys.modules[_SPARGE_MODULE] = stub


def _give_process_groups() -> None:
    process_group = importlib.import_module("yunchang.globals").PROCESS_GROUP
    for name in _MODULES_WITH_PROCESS_GROUP:
        module: Any = importlib.import_module(name)
        if module.PROCESS_GROUP is None:
            module.PROCESS_GROUP = process_group
