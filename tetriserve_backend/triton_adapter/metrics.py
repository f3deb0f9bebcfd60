"""The engine's figures on Triton's `/metrics`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tetriserve_backend.engine.metrics import Metric, Sample


@dataclass(slots=True)
class _Family:
    """A family in Triton, and by labels its metrics and their values."""

    family: Any
    metrics: dict[tuple[tuple[str, str], ...], Any] = field(default_factory=dict)
    values: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)


class TritonMetrics:
    """Keeps Triton's custom metrics as they were last published.

    Each change is a message to the server that blocks for about 50 µs, so only values that changed are sent, and
    all calls should come from a thread with nothing better to do.

    Args:
        pb_utils: Triton's module of the stub process.
    """

    def __init__(self, pb_utils: Any) -> None:
        self._pb_utils = pb_utils
        self._families: dict[str, _Family] = {}

    def publish(self, metrics: Iterable[Metric]) -> None:
        """Show these values; what a family no longer has is shown no more."""
        for metric in metrics:
            family = self._families.get(metric.name)
            if family is None:
                family = self._families[metric.name] = _Family(self._make_family(metric))
            for labels in family.metrics.keys() - {sample.labels for sample in metric.samples}:
                del family.metrics[labels], family.values[labels]
            for sample in metric.samples:
                self._show(family, sample, is_counter=metric.kind == "counter")

    def close(self) -> None:
        """Show nothing any more; to be called while the server still listens."""
        for family in self._families.values():
            family.metrics.clear()
        self._families.clear()

    def _make_family(self, metric: Metric) -> Any:
        family = self._pb_utils.MetricFamily
        kind = family.COUNTER if metric.kind == "counter" else family.GAUGE
        return family(name=metric.name, description=metric.description, kind=kind)

    @staticmethod
    def _show(family: _Family, sample: Sample, *, is_counter: bool) -> None:
        if sample.labels not in family.metrics:
            family.metrics[sample.labels] = family.family.Metric(labels=dict(sample.labels))
            family.values[sample.labels] = 0.0
        shown = family.values[sample.labels]
        if sample.value == shown:
            return
        if is_counter:
            family.metrics[sample.labels].increment(sample.value - shown)
        else:
            family.metrics[sample.labels].set(sample.value)
        family.values[sample.labels] = sample.value
