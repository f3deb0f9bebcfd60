"""Puts live runs beside their predictions, from the files that they left."""

from collections.abc import Sequence

from tetriserve_backend.cli.bench.observed import read_events, segments_of, write_timeline
from tetriserve_backend.cli.bench.predicted import Prediction, ServedTrace, Simulator, image_seconds
from tetriserve_backend.cli.bench.replay import read_answers
from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder
from tetriserve_backend.cli.bench.totals import LiveResult
from tetriserve_backend.cli.overhead.gaps import idle_of_requests
from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace


def read_served(run: BenchRun, folder: ResultFolder) -> ServedTrace:
    """What a live run left beside its summary.

    Raises:
        ConfigurationError: a file is missing or broken; tells how to have it made anew.
    """
    trace = folder.read_trace(run)
    with folder.reading(run):
        return ServedTrace(run, trace, read_events(folder.timeline(run)), read_answers(folder.answers(run)))


def evaluate(
    runs: Sequence[BenchRun], folder: ResultFolder, told: LatencyTable, engine: EngineSettings
) -> list[LiveResult]:
    """The results of runs that are done; writes the simulator's timelines and summaries.

    Args:
        runs: all are done.
        folder: where their files and the tables are.
        told: what the servers planned with.
        engine: the servers' settings, where their policy has none of its own.

    Raises:
        ConfigurationError: a file of a run is missing or broken.
    """
    by_policy: dict[str, list[ServedTrace]] = {}
    for run in runs:
        by_policy.setdefault(run.variant.name, []).append(read_served(run, folder))
    gpus = folder.read_summary(runs[0]).gpus
    images = image_seconds(one for served in by_policy.values() for one in served)
    simulator = Simulator(told, folder.pooled_table(), engine, gpus, images)
    return [result for served in by_policy.values() for result in _evaluate_server(served, folder, simulator)]


def _evaluate_server(served: Sequence[ServedTrace], folder: ResultFolder, simulator: Simulator) -> list[LiveResult]:
    """The runs of one policy, in the order in which its server did them."""
    paces = [Pace(segments_of(one.events), simulator.measured) for one in served]
    predicted = zip(simulator.by_table(served), simulator.at_pace(served, paces), strict=True)
    return [
        _evaluate_one(one, folder, pace, by_table, at_pace)
        for one, pace, (by_table, at_pace) in zip(served, paces, predicted, strict=True)
    ]


def _evaluate_one(
    served: ServedTrace, folder: ResultFolder, pace: Pace, by_table: Prediction, at_pace: Prediction
) -> LiveResult:
    run, live = served.run, folder.read_summary(served.run)
    predictions = folder.predictions()
    write_timeline(predictions.timeline(run), at_pace.events)
    predictions.write_summary(run, at_pace.draws[0])
    slo_s = {request.id: request.slo_s for request in served.trace}
    return LiveResult(
        run,
        live,
        sum(answer.deadline_met for answer in served.answers.values()),
        tuple(answer.error for answer in served.answers.values() if answer.error),
        by_table,
        at_pace,
        pace.overall,
        tuple(idle_of_requests(served.events)),
        tuple(idle_of_requests(at_pace.events)),
        (*find_problems(served.events, live.gpus), *find_trace_problems(served.events, slo_s)),
    )
