"""From (resolution, batch, degree) to seconds: what profiling measured and the scheduler plans with."""

from tetriserve_backend.latency_table.table import LatencyTable
from tetriserve_backend.latency_table.tables import LatencyTables, as_tables
from tetriserve_backend.latency_table.work import Work, work_of

__all__ = ["LatencyTable", "LatencyTables", "Work", "as_tables", "work_of"]
