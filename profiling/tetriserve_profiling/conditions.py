"""The settings that decide how long a model's work takes on given ranks, beside its dtype."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.machine import decide_attention_backend


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the model computes, and with how much of the machine. A latency table holds it under `settings`.

    Attributes:
        attention_backend: in lower case; `auto` also where the name given means the same.
        compile: whether the transformer is compiled.
        threads_per_rank, pin_ranks: on CUDA, where they play no part, their defaults.
        pace_held: whether the ranks keep to the times of another table.
    """

    attention_backend: str = "auto"
    compile: bool = False
    threads_per_rank: int = 1
    pin_ranks: bool = False
    pace_held: bool = False

    @classmethod
    def of(cls, model: ModelSettings, executor: ExecutorSettings, device: str, dtype: str) -> "Conditions":
        """Those of a server on `device` (`cpu` or `cuda`) that computes in `dtype` (torch's name)."""
        automatic = decide_attention_backend("auto", device, dtype)
        backend = decide_attention_backend(model.attention_backend, device, dtype)
        threads, pinned = (executor.threads_per_rank, executor.pin_ranks) if device == "cpu" else (1, False)
        return cls(
            attention_backend="auto" if backend == automatic else backend,
            compile=model.compile,
            threads_per_rank=threads,
            pin_ranks=pinned,
            pace_held=model.pace_table is not None,
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What is not as by default, as parts of a file's name."""
        words = {
            self.attention_backend: self.attention_backend != "auto",
            "compiled": self.compile,
            f"{self.threads_per_rank}threads": self.threads_per_rank > 1,
            "pinned": self.pin_ranks,
            "held": self.pace_held,
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
