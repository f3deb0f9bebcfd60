"""Summaries as files; `sweep` and `bench` write them under the same names."""

import json
from pathlib import Path

from pydantic import ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.simulator.summary import Summary

BENCHMARK_NOTE = "bench.json"
"""The settings of a benchmark, which make a folder of summaries its own."""


def read_summary(path: Path) -> Summary:
    """A `*.summary.json` as `simulate` writes it.

    Raises:
        ConfigurationError: the file is no such summary; names it.
        OSError: it cannot be read.
    """
    try:
        return Summary.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = explained(error.errors(include_url=False)[0])
    except ValueError as error:
        problem = f"expected JSON: {error}"
    raise ConfigurationError(f"{path}: no summary as tetriserve simulate writes it: {problem}")
