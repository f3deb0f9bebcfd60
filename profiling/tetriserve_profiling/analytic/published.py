"""Times that others have published, each beside what the analytic model says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.analytic.calibration import EAGER, Calibration
from tetriserve_profiling.analytic.catalog import Description, read_description, shipped_file
from tetriserve_profiling.analytic.gpu import load_gpu
from tetriserve_profiling.analytic.model import load_model
from tetriserve_profiling.analytic.pipeline import Pipeline

_Calibrated: TypeAlias = Callable[[Calibration], Pipeline]


class Run(Description):
    """One measured pipeline: an encode, `steps` denoising steps at `side` × `side` pixels on `sp` ranks, a decode."""

    model: str
    gpu: str
    software: str
    side: int
    steps: int
    sp: int
    seconds: float
    text_tokens: int | None = None

    def model_s(self, calibration: Calibration) -> float:
        """What the analytic model says."""
        model = load_model(self.model)
        if self.text_tokens is not None:
            model = model.model_copy(update={"text_tokens": self.text_tokens})
        pipeline = Pipeline(model, load_gpu(self.gpu), calibration, self.software)
        step_s = pipeline.step_s(self.side, self.side, sp=self.sp)
        return pipeline.encode_s() + self.steps * step_s + pipeline.decode_s(self.side, self.side)

    def __str__(self) -> str:
        """For people."""
        return f"{self.model} {self.gpu} {self.software} {self.side}² × {self.steps} steps, sp {self.sp}"


class Source(Description):
    """Runs from one place."""

    source: str
    runs: tuple[Run, ...]


class Published(Description):
    """Everything in published.yaml."""

    fitted: Source
    held_out: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published time beside the model's."""

    label: str
    published_s: float
    model_s: Callable[[Calibration], float]

    def error(self, calibration: Calibration) -> float:
        """By how much of the published time the model is above it."""
        return self.model_s(calibration) / self.published_s - 1


def load_published() -> Published:
    """The shipped list."""
    return read_description(shipped_file("published.yaml"), Published)


def run_comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """One per run."""
    return [Comparison(str(run), run.seconds, run.model_s) for run in runs]


def table_comparisons(table: LatencyTable, gpu: str, software: str = EAGER) -> Iterator[Comparison]:
    """One per entry of a table of a shipped model.

    Raises:
        ConfigurationError: the table's model or the GPU is not known.
    """
    model, described = load_model(table.model), load_gpu(gpu)

    def at(calibration: Calibration) -> Pipeline:
        return Pipeline(model, described, calibration, software)

    document = table.to_dict()
    for entry in document["step"]:
        shape = (entry["height"], entry["width"], entry["batch"], entry["sp"], entry.get("cfg", 1))
        label = "step {}x{} batch {} sp {} cfg {}".format(*shape)
        yield Comparison(label, entry["seconds"], partial(_step_s, at, shape))
    for entry in document["encode"]:
        batch = entry["batch"]
        yield Comparison(f"encode batch {batch}", entry["seconds"], partial(_encode_s, at, batch))
    for entry in document["decode"]:
        size = (entry["height"], entry["width"])
        label = "decode {}x{}".format(*size)
        yield Comparison(label, entry["seconds"], partial(_decode_s, at, size))


def _step_s(at: _Calibrated, shape: tuple[int, int, int, int, int], calibration: Calibration) -> float:
    return at(calibration).step_s(*shape)


def _encode_s(at: _Calibrated, batch: int, calibration: Calibration) -> float:
    return at(calibration).encode_s(batch)


def _decode_s(at: _Calibrated, size: tuple[int, int], calibration: Calibration) -> float:
    return at(calibration).decode_s(*size)
