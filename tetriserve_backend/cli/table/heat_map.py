"""A latency table as a picture: step time, speed-up and efficiency by resolution and degree."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from tetriserve_backend.cli.reporting.style import new_figure, save
from tetriserve_backend.cli.table.grid import Grid, grids_of
from tetriserve_backend.latency_table.document import TableDocument

_CELL_WIDTH_IN, _CELL_HEIGHT_IN, _MARGIN_IN = 0.75, 0.45, 1.3
_DARK = 0.55


def draw_heat_map(document: TableDocument, path: Path) -> Path:
    """Draw a row of three panels for each batch size; returns the path.

    Raises:
        OSError: `path` cannot be written.
    """
    grids = grids_of(document)
    widest, tallest = max(len(grid.modes) for grid in grids), max(len(grid.shapes) for grid in grids)
    width_in = 3 * (_CELL_WIDTH_IN * widest + _MARGIN_IN)
    figure = new_figure(width_in, len(grids) * (_CELL_HEIGHT_IN * tallest + _MARGIN_IN) + 0.4)
    figure.suptitle(f"{document.model} on {document.world_size} × {document.device}, {document.source}", fontsize=10)
    rows = figure.subplots(len(grids), 3, squeeze=False)
    for row, grid in zip(rows, grids, strict=True):
        _panel(row[0], grid, "step time, ms", lambda g, s, c: 1e3 * g.entries[s, g.modes[c]].seconds, is_time=True)
        _panel(row[1], grid, "speed-up over one rank", _speed_up)
        _panel(row[2], grid, "efficiency", lambda g, s, c: _speed_up(g, s, c) / g.ranks[c])
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


def _speed_up(grid: Grid, shape: tuple[int, int], column: int) -> float:
    if grid.modes[column] == (1, 1):
        return 1.0
    speed_up = grid.speed_up(shape, column)
    return np.nan if speed_up is None else speed_up


def _panel(
    axes: Axes, grid: Grid, title: str, value: Callable[[Grid, tuple[int, int], int], float], is_time: bool = False
) -> None:
    values = np.array(
        [[value(grid, s, c) if grid.at(s, c) is not None else np.nan for c in row] for s, row in grid.rows()]
    )
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    norm = LogNorm(low, max(high, 1.001 * low)) if is_time else Normalize(0.0, max(high, 1.0))
    # Cells that are not there stay white.
    axes.imshow(values, cmap="viridis_r" if is_time else "viridis", norm=norm, aspect="auto")
    for y, row in enumerate(values):
        for x, cell in enumerate(row):
            if not np.isfinite(cell):
                continue
            is_dark = norm(cell) > _DARK if is_time else norm(cell) < _DARK
            color = "white" if is_dark else "black"
            text = f"{cell:.2f}" if not is_time else f"{cell:.3g}" if cell < 1000 else f"{cell:.0f}"
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(grid.modes)), grid.columns, fontsize=8)
    axes.set_yticks(range(len(grid.shapes)), [f"{height}x{width}" for height, width in grid.shapes], fontsize=8)
    axes.set_title(f"{title}, {grid.title}", fontsize=9)
