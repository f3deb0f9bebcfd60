"""The fit behind calibration.yaml: `python -m tetriserve_profiling.analytic.calibrate [--write]`.

Minimises the sum of the sixth powers of log(model / published), so that the largest errors count, over the whole
pipelines in published.yaml and the entries of a published latency table. Nothing that is held out takes part; it is
printed beside.
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from tetriserve_backend.domain import TetriserveError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.analytic.calibration import CALIBRATION_FILE, EAGER, Calibration, load_calibration
from tetriserve_profiling.analytic.catalog import check_description
from tetriserve_profiling.analytic.published import Comparison, load_published, run_comparisons, table_comparisons

DEFAULT_TABLE = Path("model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json")
TOLERANCE = 0.15

# What is fitted, as paths in the calibration; several paths share one value.
_PARAMETERS = (
    ("achieved.matmul",),
    ("achieved.attention",),
    ("achieved.convolution",),
    ("software.compile.elementwise_share",),
    tuple(f"software.{name}.launch_us" for name in ("eager", "compile", "xdit-eager")),
    tuple(f"software.{name}.collective_us" for name in ("eager", "compile", "xdit-eager")),
    tuple(f"software.{name}.collective_host_us" for name in ("eager", "compile")),
    ("software.xdit-eager.collective_host_us",),
    ("encode_host_ms",),
    ("decode_host_ms",),
)
_SHARES = ("matmul", "attention", "convolution", "elementwise_share")
_STEP, _ITERATIONS, _LARGEST_MOVE, _SMALLEST_GAIN = 1e-4, 200, 0.3, 1e-7


def fit(start: Calibration, comparisons: Sequence[Comparison]) -> Calibration:
    """Damped Gauss–Newton on the logarithms of the parameters."""
    values = start.model_dump()
    starts = [_holder(values, paths[0]) for paths in _PARAMETERS]
    logs = np.log([holder[key] for holder, key in starts])

    def residuals(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        calibration = _with(values, np.exp(at))
        # The square of the cube is what is minimised.
        errors = np.log([1 + comparison.error(calibration) for comparison in comparisons])
        return np.asarray(errors**3, dtype=np.float64)

    damping, now = 1e-6, residuals(logs)
    for _ in range(_ITERATIONS):
        columns = [(residuals(logs + _STEP * unit) - now) / _STEP for unit in np.eye(len(logs))]
        jacobian = np.stack(columns, axis=1)
        normal = jacobian.T @ jacobian
        move = np.linalg.solve(normal + damping * np.eye(len(logs)), -jacobian.T @ now)
        moved = logs + np.clip(move, -_LARGEST_MOVE, _LARGEST_MOVE)
        after = residuals(moved)
        gain = 1 - after @ after / (now @ now)
        if gain > 0:
            logs, now, damping = moved, after, max(damping / 4, 1e-12)
        else:
            damping *= 4
        if 0 < gain < _SMALLEST_GAIN:
            break
    return _with(values, np.exp(logs))


def _holder(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The mapping that the last key of a path is in, and that key."""
    *folders, last = path.split(".")
    for folder in folders:
        values = values[folder]
    return values, last


def _with(values: dict[str, Any], parameters: npt.NDArray[np.float64]) -> Calibration:
    changed = deepcopy(values)
    for paths, value in zip(_PARAMETERS, parameters, strict=True):
        for path in paths:
            holder, key = _holder(changed, path)
            holder[key] = min(float(value), 1.0) if key in _SHARES else float(value)
    return check_description(changed, Calibration, "the fit")


def _report(title: str, comparisons: Sequence[Comparison], calibration: Calibration) -> None:
    print(f"\n{title}")
    for comparison in comparisons:
        error = comparison.error(calibration)
        model_s = comparison.model_s(calibration)
        mark = "" if abs(error) <= TOLERANCE else "  <-- outside"
        print(f"  {comparison.label:<62} {comparison.published_s:9.4f} s {model_s:9.4f} s {error:+7.1%}{mark}")


def main() -> int:
    """Fit, print both sides of everything published, and write the result if asked to.

    Exit status: 0 done; 2 a file is missing or wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=DEFAULT_TABLE, help="published table to fit to [%(default)s]")
    parser.add_argument("--write", action="store_true", help="replace calibration.yaml by the fit")
    options = parser.parse_args()
    try:
        published = load_published()
        start = load_calibration()
        table = list(table_comparisons(LatencyTable.load(options.table), start.gpu))
    except TetriserveError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    runs = run_comparisons(published.fitted.runs)
    fitted = fit(start, [*runs, *table])
    header = CALIBRATION_FILE.read_text(encoding="utf-8").splitlines()[0]
    text = f"{header}\n{yaml.safe_dump(_rounded(fitted.model_dump()), sort_keys=False)}"
    print(text)
    _report(published.fitted.source, runs, fitted)
    _report(f"{options.table} (software: {EAGER})", table, fitted)
    for source in published.held_out:
        _report(f"held out: {source.source}", run_comparisons(source.runs), fitted)
    if options.write:
        CALIBRATION_FILE.write_text(text, encoding="utf-8")
    return 0


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values


if __name__ == "__main__":
    sys.exit(main())
