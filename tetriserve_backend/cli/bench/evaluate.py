"""Puts live runs beside their predictions, from the files that they left."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.bench.compare import LiveResult
from tetriserve_backend.cli.bench.observed import read_events, segments_of, write_timeline
from tetriserve_backend.cli.bench.predicted import ImageSeconds, image_seconds, predict
from tetriserve_backend.cli.bench.replay import Answer, read_answers
from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder
from tetriserve_backend.cli.overhead.gaps import idle_share
from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.timeline import TraceEvent
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace
from tetriserve_backend.simulator.trace import TraceRequest, read_trace


@dataclass(frozen=True, slots=True)
class _Served:
    """The files of one run."""

    run: BenchRun
    events: list[TraceEvent]
    trace: list[TraceRequest]
    answers: dict[str, Answer]


def evaluate(
    runs: Sequence[BenchRun], folder: ResultFolder, table: LatencyTable, engine: EngineSettings
) -> list[LiveResult]:
    """The results of runs that are done; writes the simulator's timelines and summaries.

    Args:
        runs: all are done.
        folder: where their files are.
        table: what the servers planned with.
        engine: the servers' settings.
    """
    served = [
        _Served(
            run,
            read_events(folder.timeline(run)),
            list(read_trace(folder.trace(run))),
            read_answers(folder.answers(run)),
        )
        for run in runs
    ]
    image_s = image_seconds((one.events, one.trace, one.answers) for one in served)
    return [_evaluate_one(one, folder, table, engine, image_s) for one in served]


def _evaluate_one(
    served: _Served, folder: ResultFolder, table: LatencyTable, engine: EngineSettings, image_s: ImageSeconds
) -> LiveResult:
    run, live = served.run, folder.read_summary(served.run)
    pace = Pace(segments_of(served.events), table)
    by_table, at_pace = (
        predict(run, served.trace, table, engine, gpus=live.gpus, image_s=image_s, pace=known) for known in (None, pace)
    )
    predictions = folder.predictions()
    write_timeline(predictions.timeline(run), at_pace.events)
    predictions.write_summary(run, at_pace.summary)
    slo_s = {request.id: request.slo_s for request in served.trace}
    return LiveResult(
        run,
        live,
        sum(answer.deadline_met for answer in served.answers.values()),
        by_table,
        at_pace,
        pace.overall,
        idle_share(served.events),
        idle_share(at_pace.events),
        (*find_problems(served.events, live.gpus), *find_trace_problems(served.events, slo_s)),
    )
