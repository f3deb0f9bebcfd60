"""Where the models of one server find each other."""

import os
import stat
import tempfile
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError

_SOCKET = "models.sock"
_LONGEST_SOCKET_PATH = 100


def model_socket() -> Path:
    """The engine's socket, in a directory that only this user can enter; the same in every stub of one server.

    Raises:
        ConfigurationError: the directory is somebody else's.
    """
    # Stubs are children of their server.
    name = f"tetriserve-{os.getuid()}-{os.getppid()}"
    parent = Path(tempfile.gettempdir())
    if len(str(parent / name / _SOCKET)) > _LONGEST_SOCKET_PATH:
        parent = Path("/tmp")
    folder = parent / name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(f"{folder}: not a directory of this user alone; remove it")
    return folder / _SOCKET
