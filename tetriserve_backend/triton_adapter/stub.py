"""The one place that imports what only exists inside Triton's Python stub process."""

import importlib
from typing import Any

pb_utils: Any = importlib.import_module("triton_python_backend_utils")
