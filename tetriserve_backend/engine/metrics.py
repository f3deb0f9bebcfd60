"""Figures for monitoring, as plain values: whoever exports them needs to know nothing else of the engine."""

from dataclasses import dataclass
from typing import Literal

from tetriserve_backend.engine.drift import DriftSnapshot
from tetriserve_backend.engine.model_drift import ShapeDrift


@dataclass(frozen=True, slots=True)
class Sample:
    """A value and what it is about, as (label, value) pairs; of a counter, the total since the start."""

    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of samples under one name; all of them have the same labels, and no two the same values of these."""

    name: str
    kind: Literal["gauge", "counter"]
    description: str
    samples: tuple[Sample, ...]


def drift_metrics(drift: DriftSnapshot) -> tuple[Metric, ...]:
    """What monitoring should know about drift.

    Only entries of the latency table are shown: clients may ask for any shape between them, and each set of labels
    costs memory for months in whatever keeps the figures. The others are in `drift_status`.
    """
    shown = (shape for shape in drift.shapes if shape.is_entry)
    return (
        Metric(
            "tetriserve_step_time_ratio",
            "gauge",
            "Measured over expected time (latency table) of the last segments, median",
            tuple(Sample(_labels(shape), shape.ratio) for shape in shown),
        ),
        Metric(
            "tetriserve_rank_time_ratio",
            "gauge",
            "Time that work takes on a rank over what it takes on the others",
            tuple(Sample((("rank", str(rank.rank)),), rank.ratio) for rank in drift.ranks if rank.samples),
        ),
        Metric(
            "tetriserve_rank_quarantined",
            "gauge",
            "1 for a rank that gets no work for a while, since it is too slow",
            tuple(Sample((("rank", str(rank.rank)),), float(rank.is_quarantined)) for rank in drift.ranks),
        ),
        Metric(
            "tetriserve_drift_warnings_total",
            "counter",
            "Warnings that work or a rank has left the latency table",
            (Sample((), float(drift.warnings)),),
        ),
    )


def drift_status(drift: DriftSnapshot) -> dict[str, object]:
    """The same and more, ready for JSON."""
    return {
        "corrected": list(drift.corrected),
        "warnings": drift.warnings,
        "shapes": [
            {**dict(_labels(shape)), "ratio": round(shape.ratio, 4), "samples": shape.samples,
             "factor": round(shape.factor, 4)}
            for shape in drift.shapes
        ],
        "ranks": {str(rank.rank): round(rank.ratio, 4) for rank in drift.ranks if rank.samples},
        "quarantined": [rank.rank for rank in drift.ranks if rank.is_quarantined],
    }  # fmt: skip


def _labels(shape: ShapeDrift) -> tuple[tuple[str, str], ...]:
    work = shape.work
    return (
        ("model", shape.model),
        ("stage", work.kind.value),
        ("shape", f"{work.height}x{work.width}" if work.height else ""),
        ("degree", str(work.degree)),
        ("batch", str(work.batch)),
        ("cfg", str(work.cfg_degree)),
    )
