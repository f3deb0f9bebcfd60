"""The engine in virtual time: the same core, segments performed by the latency table instead of ranks."""
