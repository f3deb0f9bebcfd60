"""From (resolution, batch, degree) to seconds: what profiling measured and the scheduler plans with."""

from tetriserve_backend.latency_table.table import LatencyTable
from tetriserve_backend.latency_table.tables import LatencyTables, as_tables

__all__ = ["LatencyTable", "LatencyTables", "as_tables"]
