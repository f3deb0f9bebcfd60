"""How every figure of a report looks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Told apart by most colour-blind readers (Okabe and Ito), then shades for more.
_PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C564B",
    "#7F7F7F",
    "#BCBD22",
    "#5E4FA2",
)
_MARKERS = "osD^vP*Xhp"
BOUND_LABEL = "bound (clairvoyant)"
BOUND_STYLE: Mapping[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.4}
DPI = 130
_LEGEND_ENTRY_IN = 1.55


@dataclass(frozen=True, slots=True)
class Look:
    """Colour and marker of one policy, the same in every figure of a report."""

    color: str
    marker: str


def looks(policies: Iterable[str]) -> dict[str, Look]:
    """A look for each policy."""
    return {
        policy: Look(_PALETTE[index % len(_PALETTE)], _MARKERS[index % len(_MARKERS)])
        for index, policy in enumerate(dict.fromkeys(policies))
    }


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that draws without a display."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """A light grid, and no frame where it says nothing."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG; returns its path.

    Raises:
        OSError: `path` cannot be written.
    """
    figure.savefig(path, dpi=DPI)
    return path


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, under them, in as few rows as the width allows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_size_inches()[0] // _LEGEND_ENTRY_IN))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
