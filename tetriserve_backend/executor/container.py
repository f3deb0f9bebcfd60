"""What the container that this runs in, if any, leaves to its processes."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def memory_left_bytes(cgroup: Path = _CGROUP) -> int | None:
    """What its processes can still have, caches given up; None without a limit.

    Args:
        cgroup: where cgroup v2 tells of the container.
    """
    try:
        limit = int((cgroup / "memory.max").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        used = int((cgroup / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return max(0, limit - used)


def core_quota(cgroup: Path = _CGROUP) -> float | None:
    """How many cores its processes may keep busy, on average; None without a limit.

    Args:
        cgroup: where cgroup v2 tells of the container.
    """
    try:
        quota_us, period_us = map(int, (cgroup / "cpu.max").read_text().split())
    except (OSError, ValueError):
        return None
    return quota_us / period_us
