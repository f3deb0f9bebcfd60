"""The latency tables of all served models; what the engine and its policy share."""

from collections.abc import Iterator, Mapping

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table.table import LatencyTable


class LatencyTables:
    """One `LatencyTable` per served model.

    The only thing about latencies that changes while a server runs: models come and go, and measured drift
    replaces a table by a corrected one. Whoever keeps values derived from a table must look at `version`.
    """

    def __init__(self, tables: Mapping[str, LatencyTable]) -> None:
        """Start with these tables, by the names that `Request.model` uses."""
        self._tables = dict(tables)
        self._version = 0

    @property
    def version(self) -> int:
        """Counts changes."""
        return self._version

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the served models, in the order in which they came."""
        return tuple(self._tables)

    def __iter__(self) -> Iterator[LatencyTable]:
        """The tables, in the order of `models`."""
        return iter(tuple(self._tables.values()))

    def has(self, model: str) -> bool:
        """Whether `of` knows that name."""
        return model in self._tables or (not model and len(self._tables) == 1)

    def of(self, model: str) -> LatencyTable:
        """The table of a model; "" is the only one there is.

        Raises:
            LatencyTableError: no such model is served, or "" while there are several.
        """
        if not self.has(model):
            raise LatencyTableError(
                f"no latency table for model {model!r}; served: {', '.join(self._tables) or 'none'}"
            )
        return self._tables[model] if model in self._tables else next(iter(self._tables.values()))

    def name_of(self, model: str) -> str:
        """The name, of `models`, of the table that `of` returns.

        Raises:
            LatencyTableError: as `of`.
        """
        self.of(model)
        return model if model in self._tables else next(iter(self._tables))

    def copy(self) -> "LatencyTables":
        """The same tables, which do not change with these."""
        return LatencyTables(self._tables)

    def put(self, model: str, table: LatencyTable) -> None:
        """Add a model, or replace its table."""
        self._tables[model] = table
        self._version += 1

    def remove(self, model: str) -> None:
        """Forget a model; does nothing if it is not there."""
        if self._tables.pop(model, None) is not None:
            self._version += 1


def as_tables(given: "LatencyTable | LatencyTables") -> LatencyTables:
    """A single table serves every request, whatever model it names none of."""
    return given if isinstance(given, LatencyTables) else LatencyTables({"": given})
