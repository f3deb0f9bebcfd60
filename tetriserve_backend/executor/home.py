"""Where things that the server makes for itself are kept."""

import os
from pathlib import Path


def tetriserve_home() -> Path:
    """`TETRISERVE_HOME`, or `~/.cache/tetriserve`; not created here."""
    configured = os.environ.get("TETRISERVE_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "tetriserve"
