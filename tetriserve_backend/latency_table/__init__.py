"""From (resolution, batch, degree) to seconds: what profiling measured and the scheduler plans with."""

from tetriserve_backend.latency_table.table import LatencyTable

__all__ = ["LatencyTable"]
