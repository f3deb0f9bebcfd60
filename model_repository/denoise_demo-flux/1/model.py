"""Triton loads this file; the model itself is in `tetriserve_backend.triton_adapter.served_model`."""

import os
import sys

# The stub ignores PYTHONPATH: the launcher names here where to import from when we are not installed.
sys.path[:0] = filter(None, os.environ.get("TETRISERVE_IMPORT_PATH", "").split(os.pathsep))

from tetriserve_backend.triton_adapter.served_model import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
