"""Finds a tritonserver that this Python can work with."""

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError

SUPPORTED_PYTHONS = ((3, 10), (3, 11), (3, 12))
_STUB = "triton_python_backend_stub"
_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
_LIBPYTHON = re.compile(rb"libpython(3)\.(\d+)\.so")


@dataclass(frozen=True, slots=True)
class TritonInstallation:
    """A tritonserver and what its Python backend needs.

    Attributes:
        server: the executable.
        backend_files: what the backend's directory must hold, stub included.
        library_dirs: folders that the server's own libraries need on LD_LIBRARY_PATH.
    """

    server: Path
    backend_files: tuple[Path, ...]
    library_dirs: tuple[Path, ...] = ()


def find_installation(search_path: str | None = None) -> TritonInstallation:
    """The tritonserver on `search_path` (default: PATH) if its Python is ours, else the one of nvidia-pytriton.

    Raises:
        ConfigurationError: this Python is not supported, or there is no server; says what to do.
    """
    _check_python()
    problems = []
    on_path = shutil.which("tritonserver", path=search_path)
    if on_path is not None:
        try:
            return _installed_on_path(Path(on_path).resolve())
        except ConfigurationError as error:
            problems.append(str(error))
    try:
        return _installed_by_wheel()
    except ConfigurationError as error:
        problems.append(str(error))
    raise ConfigurationError("; ".join(problems))


def find_libpython_dir() -> Path:
    """The folder of this Python's shared library, which the stub must load: another one breaks it quietly.

    Raises:
        ConfigurationError: this Python was built without one.
    """
    name = _libpython_name()
    variables = [sysconfig.get_config_var(key) for key in ("LIBDIR", "LIBPL")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    candidates = [Path(value) for value in variables if value]
    candidates += [Path(sys.base_prefix) / "lib"]
    candidates += [base / multiarch for base in list(candidates) if multiarch]
    for folder in candidates:
        if (folder / name).exists():
            return folder
    raise ConfigurationError(
        f"this Python ({sys.executable}) has no shared library {name} (looked in "
        f"{', '.join(str(folder) for folder in dict.fromkeys(candidates))}); tritonserver's Python backend needs it: "
        f"use a Python with one (Debian: apt install libpython3.{sys.version_info.minor}; "
        "pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install)"
    )


def _check_python() -> None:
    if sys.version_info[:2] not in SUPPORTED_PYTHONS:
        allowed = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
        raise ConfigurationError(f"Python {platform.python_version()} is not supported; allowed: {allowed}")


def _libpython_name() -> str:
    name = sysconfig.get_config_var("INSTSONAME")
    if isinstance(name, str) and ".so" in name:
        return name
    return f"libpython3.{sys.version_info.minor}.so.1.0"


def _installed_on_path(server: Path) -> TritonInstallation:
    backend = server.parent.parent / "backends" / "python"
    files = tuple(backend / name for name in (*_BACKEND_FILES, _STUB))
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise ConfigurationError(f"{server}: its Python backend lacks {', '.join(missing)}")
    found = _LIBPYTHON.search(files[-1].read_bytes())
    minor = int(found.group(2)) if found else None
    if minor != sys.version_info.minor:
        raise ConfigurationError(
            f"{server}: its Python backend is for Python 3.{minor}, this is {platform.python_version()}"
        )
    return TritonInstallation(server, files)


def _installed_by_wheel() -> TritonInstallation:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("no usable tritonserver on PATH, and nvidia-pytriton is not installed")
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / f"3.{sys.version_info.minor}" / _STUB
    server = root / "bin" / "tritonserver"
    files = (*(root / "backends" / "python" / name for name in _BACKEND_FILES), stub)
    for file in (server, *files):
        if not file.exists():
            raise ConfigurationError(f"nvidia-pytriton lacks {file}: install the pinned version again")
    if not os.access(server, os.X_OK) or not os.access(stub, os.X_OK):
        raise ConfigurationError(f"{server} or {stub} may not be executed")
    return TritonInstallation(server, files, (package.parent / "nvidia_pytriton.libs",))
