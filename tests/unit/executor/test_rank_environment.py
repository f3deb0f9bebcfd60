"""What the processes of ranks find in their environment."""

from pathlib import Path

import pytest

from tetriserve_backend.executor.rank_processes import RankProcesses

DEFAULTS = {
    "cpu": {"GLOO_SOCKET_IFNAME": "lo"},
    "cuda": {"NCCL_SOCKET_IFNAME": "lo", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"},
}


@pytest.mark.parametrize("device", DEFAULTS)
def test_ranks_talk_on_this_host_only_and_outlive_timeouts_unless_told_otherwise(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = RankProcesses(device, 1, tmp_path, lambda name, status: None)
    for name in DEFAULTS[device]:
        monkeypatch.delenv(name, raising=False)
    assert processes._environment().items() >= DEFAULTS[device].items()
    own = dict.fromkeys(DEFAULTS[device], "own")
    for name in own:
        monkeypatch.setenv(name, "own")
    assert processes._environment().items() >= own.items()
