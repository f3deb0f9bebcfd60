"""Bounds kept on disk under a hash of everything that they follow from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tetriserve_backend.domain import Request
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.simulator.bound.clairvoyant import Bound, BoundSettings, clairvoyant_bound

_REVISION = 3
"""Goes into the hash: raise it when the relaxation changes."""


class BoundCache:
    """`clairvoyant_bound` that computes each bound once; only those solved to the end are kept."""

    def __init__(self, folder: Path | None) -> None:
        """Keep bounds in `folder`, which is made when the first one is kept; None keeps none."""
        self._folder = folder

    def bound(
        self, given: LatencyTable | LatencyTables, requests: Iterable[Request], world_size: int, settings: BoundSettings
    ) -> Bound:
        """The bound, from disk where it is there.

        Raises:
            BoundError: the solver failed.
        """
        if self._folder is None:
            return clairvoyant_bound(given, requests, world_size, settings)
        listed = list(requests)
        path = self._folder / f"{_key(as_tables(given), listed, world_size, settings)}.bound.json"
        try:
            return Bound(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            bound = clairvoyant_bound(given, listed, world_size, settings)
        if bound.optimal:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(bound)), encoding="utf-8")
        return bound


def _key(tables: LatencyTables, requests: list[Request], world_size: int, settings: BoundSettings) -> str:
    digest = hashlib.sha256()
    rule = (_REVISION, world_size, settings.batching, settings.gap, settings.block_requests, settings.merge_s)
    digest.update(
        json.dumps([rule, *((model, tables.of(model).to_dict()) for model in tables.models)], sort_keys=True).encode()
    )
    for r in requests:
        digest.update(f"{r.model!r},{r.height},{r.width},{r.num_steps},{r.arrival_s!r},{r.deadline_s!r};".encode())
    return digest.hexdigest()[:32]
