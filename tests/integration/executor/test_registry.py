"""Which models are loaded, and when there is room for one."""

from pathlib import Path

import pytest
import torch

from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.models import registry

GIB = 1 << 30


class Family:
    @classmethod
    def load(cls, *_: object) -> str:
        return "loaded"


def test_memory_that_the_allocator_only_keeps_is_room_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, so with what CUDA would say."""
    free_bytes = [0]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free_bytes.append(2 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes[-1], 8 * GIB))
    monkeypatch.setitem(registry._FAMILIES, "FluxPipeline", (__name__, "Family"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    loaded: object = registry.load_model(tmp_path, ModelSettings(), torch.device("cuda", 0), torch.bfloat16)
    assert loaded == "loaded"
