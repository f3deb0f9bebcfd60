"""What the sequence-parallel degrees of a table's model must divide, as far as that is known without loading it."""

from collections.abc import Mapping
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.analytic.model import load_model


def known_counts(table: LatencyTable, configured: str | None = None) -> Mapping[str, int] | None:
    """Counts by name, such as attention heads, besides the image tokens; None where nothing tells them.

    A configured model other than the table's counts first, as a server goes by what it has loaded; then what the table
    tells; then what is known of the table's model.

    Args:
        table: made by whatever version.
        configured: what a server would load: a folder, a hub id, or an embedded model.
    """
    if configured not in (None, table.model) and (counts := _described(str(configured), table)) is not None:
        return counts
    return table.shared_counts or _described(table.model, table)


def _described(model: str, table: LatencyTable) -> dict[str, int] | None:
    """Of a folder in diffusers format by its transformer's config.json, of a model that we ship a description of."""
    sizes = Path(model) / "transformer" / "config.json"
    try:
        counts = load_model(str(sizes) if sizes.is_file() else model).shared_counts
    except ConfigurationError:
        return None
    # As it was measured rather than as is usual.
    return {name: (table.text_tokens or count) if name == "text tokens" else count for name, count in counts.items()}
