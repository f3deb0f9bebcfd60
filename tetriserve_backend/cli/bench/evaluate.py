"""Puts live runs beside their predictions, from the files that they left."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.cli.bench.observed import read_events, segments_of, write_timeline
from tetriserve_backend.cli.bench.predicted import Prediction, ServedTrace, Simulator, image_seconds
from tetriserve_backend.cli.bench.replay import read_answers
from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder
from tetriserve_backend.cli.bench.totals import Foretold, LiveResult
from tetriserve_backend.cli.overhead.gaps import idle_of_requests
from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace
from tetriserve_backend.simulator.summary import Summary


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
    checked: dict[str, list[_CheckedRun]] = {}
    for run in runs:
        checked.setdefault(run.variant.name, []).append(_read_checked(run, folder))
    everyone = [one for own in checked.values() for one in own]
    images = image_seconds(one.served for one in everyone if not one.problems)
    simulator = Simulator(told, folder.pooled_table(), engine, everyone[0].live.gpus, images)
    return [result for own in checked.values() for result in _evaluate_server(own, folder, simulator)]


@dataclass(frozen=True, slots=True)
class _CheckedRun:
    """A run that is done, with what is wrong with its timeline."""

    served: ServedTrace
    live: Summary
    problems: tuple[str, ...]


def _read_checked(run: BenchRun, folder: ResultFolder) -> _CheckedRun:
    served, live = read_served(run, folder), folder.read_summary(run)
    slo_s = {request.id: request.slo_s for request in served.trace}
    problems = (*find_problems(served.events, live.gpus), *find_trace_problems(served.events, slo_s))
    return _CheckedRun(served, live, problems)


def _evaluate_server(own: Sequence[_CheckedRun], folder: ResultFolder, simulator: Simulator) -> list[LiveResult]:
    """The runs of one policy, in the order in which its server did them.

    Those whose timeline is wrong are not foretold: what came to the server is not known.
    """
    paces = {one.served.run.name: Pace(segments_of(one.served.events), simulator.measured) for one in own}
    sound = [one.served for one in own if not one.problems]
    foretold: dict[str, Foretold] = {}
    if sound:
        predicted = simulator.by_table(sound), simulator.at_pace(sound, [paces[one.run.name] for one in sound])
        for served, by_table, at_pace in zip(sound, *predicted, strict=True):
            foretold[served.run.name] = _foretell(served.run, folder, by_table, at_pace)
    return [_result(one, foretold.get(one.served.run.name), paces[one.served.run.name]) for one in own]


def _foretell(run: BenchRun, folder: ResultFolder, by_table: Prediction, at_pace: Prediction) -> Foretold:
    predictions = folder.predictions()
    write_timeline(predictions.timeline(run), at_pace.events)
    predictions.write_summary(run, at_pace.draws[0])
    return Foretold(by_table, at_pace, tuple(idle_of_requests(at_pace.events)))


def _result(one: _CheckedRun, foretold: Foretold | None, pace: Pace) -> LiveResult:
    answers = one.served.answers.values()
    return LiveResult(
        one.served.run,
        one.live,
        sum(answer.deadline_met for answer in answers),
        tuple(answer.error for answer in answers if answer.error),
        foretold,
        pace.overall,
        tuple(idle_of_requests(one.served.events)),
        one.problems,
    )
