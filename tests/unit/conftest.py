"""What unit tests of several layers share."""

import pytest

from tests.unit.latency_table.test_format import H100
from tetriserve_backend.latency_table import LatencyTable


@pytest.fixture(scope="session")
def h100() -> LatencyTable:
    """The published table of FLUX.1-dev on 8×H100."""
    return LatencyTable.load(H100)
