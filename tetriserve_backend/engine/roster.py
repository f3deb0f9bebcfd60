"""Which models take requests."""

from tetriserve_backend.domain import InvalidRequestError, LatencyTableError, Request, TetriserveError, UnavailableError
from tetriserve_backend.latency_table import LatencyTable, LatencyTables


class ModelRoster:
    """The models of a server, which come and go.

    Args:
        tables: what engine and policy plan with; kept up to date.
    """

    def __init__(self, tables: LatencyTables) -> None:
        self._tables = tables
        self._closing: set[str] = set()

    def add(self, model: str, table: LatencyTable) -> None:
        """The model takes requests from now on."""
        self._closing.discard(model)
        self._tables.put(model, table)

    def close(self, model: str) -> None:
        """The model takes no more requests; those that it has go on."""
        self._closing.add(model)

    def remove(self, model: str) -> None:
        """The model is gone; it must have no request left."""
        self._closing.discard(model)
        self._tables.remove(model)

    def refusal(self, request: Request) -> TetriserveError | None:
        """Why the request cannot be served, whoever else is; None if it can."""
        if request.model in self._closing:
            return UnavailableError(f"model '{request.model}' is being unloaded and takes no new requests")
        if not self._tables.has(request.model):
            served = ", ".join(self._tables.models) or "none at present"
            return InvalidRequestError("model", f"got {request.model!r}", served)
        try:
            self._tables.of(request.model).check_resolution(request.height, request.width)
        except LatencyTableError as problem:
            return InvalidRequestError("height, width", f"got {request.height}x{request.width}", problem.allowed)
        return None
