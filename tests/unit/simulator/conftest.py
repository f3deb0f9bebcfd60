"""A small table with round numbers, the published one, and helpers to make requests."""

import pytest

from tetriserve_backend.domain import Request
from tetriserve_backend.latency_table import LatencyTable

STEP_S = {256: {1: 0.1, 2: 0.08, 4: 0.07}, 512: {1: 0.4, 2: 0.22, 4: 0.13}}
ENCODE_S, DECODE_S = 0.02, 0.05


def small_table(
    *,
    dispatch_s: float = 0.0,
    batches: dict[tuple[int, int, int], float] | None = None,
    moves: dict[tuple[tuple[int, ...], tuple[int, ...]], float] | None = None,
) -> LatencyTable:
    """Two resolutions on four GPUs; `batches` adds steps by (side, degree, batch), `moves` seconds by ranks."""
    steps = {(side, degree, 1): seconds for side, column in STEP_S.items() for degree, seconds in column.items()}
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": "test",
            "device": "test",
            "world_size": 4,
            "dtype": "float32",
            "source": "analytic",
            "step": [
                {"height": side, "width": side, "sp": degree, "batch": batch, "seconds": seconds}
                for (side, degree, batch), seconds in {**steps, **(batches or {})}.items()
            ],
            "encode": [{"batch": 1, "seconds": ENCODE_S}],
            "decode": [{"height": side, "width": side, "seconds": DECODE_S} for side in STEP_S],
            "dispatch_seconds": dispatch_s,
            "hand_over": [
                {
                    "height": 512,
                    "width": 512,
                    "from": list(before),
                    "to": list(after),
                    "seconds": 0.0,
                    "share_of_step": 0.0,
                    "between_seconds": between_s,
                }
                for (before, after), between_s in (moves or {}).items()
            ],
        },
        origin="test",
    )


def make_request(
    request_id: str, side: int = 256, *, arrival_s: float = 0.0, slo_s: float = 5.0, num_steps: int = 5
) -> Request:
    return Request(request_id, side, side, num_steps=num_steps, arrival_s=arrival_s, deadline_s=arrival_s + slo_s)


@pytest.fixture(scope="session")
def table() -> LatencyTable:
    return small_table(dispatch_s=0.001)
