"""Traces made from a few numbers and a seed, or taken over from other systems."""

from tetriserve_backend.simulator.workload.generate import generate
from tetriserve_backend.simulator.workload.imports import ImportFormat, import_requests
from tetriserve_backend.simulator.workload.spec import Arrivals, Mix, Positive, RatePerMinute, Seed, WorkloadSpec

__all__ = [
    "Arrivals",
    "ImportFormat",
    "Mix",
    "Positive",
    "RatePerMinute",
    "Seed",
    "WorkloadSpec",
    "generate",
    "import_requests",
]
