"""The settings that decide how long a model's work takes on given ranks, beside its dtype."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.machine import decide_attention_backend
from tetriserve_backend.latency_table import LatencyTable


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the model computes, and with how much of the machine. A latency table holds it under `settings`.

    Attributes:
        attention_backend: in lower case; `auto` also where the name given means the same.
        compile: whether the transformer is compiled.
        threads_per_rank, pin_ranks: on CUDA, where they play no part, their defaults.
        pace: names the times that the ranks keep to (`model.pace_table`), if they do.
    """

    attention_backend: str = "auto"
    compile: bool = False
    threads_per_rank: int = 1
    pin_ranks: bool = False
    pace: str | None = None

    @classmethod
    def of(cls, model: ModelSettings, executor: ExecutorSettings, device: str, dtype: str) -> "Conditions":
        """Those of a server on `device` (`cpu` or `cuda`) that computes in `dtype` (torch's name).

        Raises:
            LatencyTableError: the table of the pace cannot be read.
        """
        automatic = decide_attention_backend("auto", device, dtype)
        backend = decide_attention_backend(model.attention_backend, device, dtype)
        threads, pinned = (executor.threads_per_rank, executor.pin_ranks) if device == "cpu" else (1, False)
        return cls(
            attention_backend="auto" if backend == automatic else backend,
            compile=model.compile,
            threads_per_rank=threads,
            pin_ranks=pinned,
            pace=_digest(LatencyTable.load(model.pace_table)) if model.pace_table is not None else None,
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What is not as by default, as parts of a file's name."""
        words = {
            self.attention_backend: self.attention_backend != "auto",
            "compiled": self.compile,
            f"{self.threads_per_rank}threads": self.threads_per_rank > 1,
            "pinned": self.pin_ranks,
            f"held-{self.pace}": self.pace is not None,
        }
        return tuple(word for word, is_told in words.items() if is_told)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """What the `settings` of a table tell otherwise, in words; of what they do not tell nothing is known."""
        told = {name: settings[name] for name in self.to_dict() if name in settings}
        return [
            f"{name} ({value!r}, here {getattr(self, name)!r})"
            for name, value in told.items()
            if value != getattr(self, name)
        ]


def _digest(table: LatencyTable) -> str:
    times = sorted((str(work), table.seconds(work)) for work in table.works)
    return hashlib.sha256(json.dumps(times).encode()).hexdigest()[:8]
