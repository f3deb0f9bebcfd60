"""The tables of a live benchmark count over all requests and compare policies trace by trace."""

import re
from dataclasses import replace

import pytest

from tests.unit.cli.bench.test_results import some_summary
from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench.compare import live_sheets
from tetriserve_backend.cli.bench.predicted import Prediction
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.cli.bench.totals import Foretold, LiveResult
from tetriserve_backend.cli.overhead.gaps import RequestIdle
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.sweep import Variant
from tetriserve_backend.simulator.workload import WorkloadSpec

TABLE = small_table()


def summary(policy, requests, on_time, mean_s):
    return replace(
        some_summary(policy), gpus=4, requests=requests, on_time=on_time, latency_s={"mean": mean_s, "count": requests}
    )


def result(policy, cell, *, live, at_pace, mean_s=1.0, problems=(), errors=(), pace=1.0):
    """Of ten requests; the second draw of the prediction has one fewer on time, and is slower."""
    run = BenchRun(cell, WorkloadSpec(seed=cell), Variant(name=policy, scheduler=SchedulerSettings(policy=policy)))
    draws = summary(policy, 10, at_pace, 1.1 * mean_s), summary(policy, 10, at_pace - 1, 1.3 * mean_s)
    at_pace, by_table = Prediction(draws, at_pace - 1, []), Prediction(draws[1:], at_pace - 1.5, [])
    foretold = Foretold(by_table, at_pace, (RequestIdle("r0", 0.001, 1.0),))
    idle = RequestIdle("r0", 0.004, 0.5), RequestIdle("r1", 0.001, 0.5)
    return LiveResult(run, summary(policy, 10, live, mean_s), live - 1, errors, foretold, pace, idle, problems)


def column(sheet, heading):
    index = sheet.headings.index(heading)
    return [row[index] for row in sheet.rows]


@pytest.fixture(scope="module")
def sheets():
    return live_sheets(
        [
            result("tetris", 0, live=9, at_pace=9),
            result("tetris", 1, live=8, at_pace=9, mean_s=3.0),
            result("rssp", 0, live=5, at_pace=5),
            result("rssp", 1, live=6, at_pace=5, problems=("GPU 0: overlap",)),
        ],
        small_table(),
    )


def test_one_workload_has_a_table_of_what_happened_two_of_what_was_predicted_and_the_gist(sheets):
    titles = ["live", "live and simulated, SLO met", "live and simulated, mean latency", "in short"]
    assert [sheet.title.partition(":")[0] for sheet in sheets] == titles
    assert column(sheets[0], "policy") == ["tetris", "rssp"]


def test_traces_of_other_mixes_are_other_workloads():
    results = [
        replace(one, run=replace(one.run, workload=WorkloadSpec(mix={"256x256": weight, "512x512": 1})))
        for weight, one in ((1, result("tetris", 0, live=9, at_pace=9)), (2, result("tetris", 1, live=1, at_pace=1)))
    ]
    titles = [sheet.title for sheet in live_sheets(results, TABLE) if sheet.title.startswith("live: ")]
    assert [re.search("mix (.*), SLO", title)[1] for title in titles] == ["256x256:1 512x512:1", "256x256:2 512x512:1"]


def test_attainment_is_over_all_requests_and_the_lead_over_pairs_of_traces(sheets):
    assert column(sheets[0], "SLO met") == ["85.0%", "55.0%"]
    assert column(sheets[0], "by seed") == ["90% 80%", "50% 60%"]
    assert column(sheets[0], "lead of tetris, points") == ["", "+30.0 ± 10.0"]


def test_idle_time_is_that_of_all_requests_that_of_the_simulator_and_that_of_the_worst_request(sheets):
    assert column(sheets[0], "idle between segments") == ["0.50%"] * 2
    assert column(sheets[0], "of it by plan") == ["0.10%"] * 2
    assert column(sheets[0], "most of a request") == ["0.80%"] * 2
    (served, *_, gist) = live_sheets([replace(result("tetris", 0, live=0, at_pace=0), idle=())], small_table())
    assert not any("single request" in what for what, _ in gist.rows)
    assert column(served, "most of a request") == column(served, "idle between segments") == ["0.00%"]


def test_a_timeline_with_problems_is_not_called_good(sheets):
    assert column(sheets[0], "timeline") == ["good", "1 problems"]


def test_predictions_stand_beside_what_happened_with_the_difference(sheets):
    rows = [dict(zip(sheets[1].headings[:4], row[:4], strict=True)) for row in sheets[1].rows]
    assert [row["SLO met: live"] for row in rows] == ["85.0%", "55.0%"]
    assert [row["by table"] for row in rows] == ["80.0% ± 0.0", "40.0% ± 0.0"]
    assert [row["off by, points"] for row in rows] == ["-5.0", "-15.0"]
    assert column(sheets[2], "mean latency s: live") == ["2.000", "1.000"]


def test_what_is_not_foretold_is_in_no_figure_beside_a_prediction():
    lost = replace(result("tetris", 1, live=0, at_pace=9, problems=("r0: arrived 2 times",)), foretold=None)
    sheets = live_sheets([result("tetris", 0, live=9, at_pace=9), lost, result("rssp", 0, live=5, at_pace=5)], TABLE)
    assert column(sheets[0], "SLO met") == ["45.0%", "50.0%"]
    assert column(sheets[1], "SLO met: live") == ["90.0%", "50.0%"]
    for sheet in sheets[1:3]:
        assert sheet.notes[-1] == "Without runs whose timeline is wrong: c001.tetris."
    (served, attained, latency, gist) = live_sheets([lost], TABLE)
    assert column(served, "of it by plan") == [""] and attained.rows == latency.rows == ()
    assert not any("predicted" in what for what, _ in gist.rows)


def test_image_files_are_predicted_as_well(sheets):
    images = sheets[1].headings.index("with image file: live")
    assert sheets[1].headings[images:] == ("with image file: live", "by table", "off by, points", "at pace")
    assert [row[images:] for row in sheets[1].rows] == [
        ("75.0%", "75.0%", "+0.0", "80.0%"),
        ("45.0%", "35.0%", "-10.0", "40.0%"),
    ]


def test_a_prediction_is_the_mean_of_its_draws_with_their_deviation(sheets):
    attained = sheets[1].headings.index("at pace")
    assert [row[attained : attained + 2] for row in sheets[1].rows] == [
        ("85.0% ± 7.1", "+0.0"),
        ("45.0% ± 7.1", "-10.0"),
    ]
    assert sheets[2].rows[0][-2:] == ("2.400 ± 0.283", "+20.0%")


def test_a_table_is_the_same_in_every_format(sheets):
    sheet = sheets[0]
    assert sheet.to_csv().splitlines()[1].startswith("tetris,85.0%,90% 80%,")
    assert "| tetris | 85.0% |" in sheet.to_markdown() and sheet.notes[0] in sheet.to_markdown()
    assert "<td>85.0%</td>" in sheet.to_html() and sheet.to_html().count("<tr>") == 3
    assert [column.header for column in sheet.to_rich().columns] == list(sheet.headings)


def test_runs_at_another_pace_and_requests_without_an_image_are_told():
    (served, *_) = live_sheets(
        [
            result("tetris", 0, live=9, at_pace=9, pace=1.02),
            result("tetris", 1, live=9, at_pace=9, pace=1.4, errors=("no rank left", "gone")),
        ],
        small_table(),
    )
    assert not any("c000" in note for note in served.notes)
    slow, failed = (note for note in served.notes if note.startswith("c001.tetris"))
    assert "pace 1.40" in slow and "2 requests" in failed and "no rank left" in failed


@pytest.mark.parametrize(("expected", "told"), [(None, False), (3.0, False), (3.5, True)])
def test_the_gist_tells_where_ranks_gained_less_together_than_was_expected(expected, told):
    (*_, gist) = live_sheets([result("tetris", 0, live=9, at_pace=9)], small_table(), expected)
    assert any("3.08 times as fast at 512x512, expected 3.5" in note for note in gist.notes) is told
    assert (gist.notes != ()) is told


def test_the_gist_knows_no_more_ranks_than_served():
    alone = result("tetris", 0, live=9, at_pace=9)
    pair = replace(alone, live=replace(alone.live, gpus=2))
    (*_, gist) = live_sheets([pair], TABLE, 1.9)
    assert gist.rows[-1][0].endswith("of 2 ranks") and gist.rows[-1][1] == "256x256 1.25, 512x512 1.82"
    assert "1.82 times as fast at 512x512, expected 1.9" in gist.notes[0]


def test_the_gist_has_the_leads_the_worst_predictions_the_most_idle_time_and_what_ranks_gain_together():
    paper = result("tetriserve", 0, live=9, at_pace=9)
    (*_, gist) = live_sheets(
        [
            result("tetris", 0, live=9, at_pace=9),
            replace(paper, idle=(RequestIdle("r0", 0.05, 1.0), RequestIdle("r7", 0.01, 2.0))),
            result("fixed-sp1", 0, live=4, at_pace=5),
            result("rssp", 0, live=6, at_pace=5, mean_s=2.0),
        ],
        small_table(),
    )
    assert gist.rows == (
        ("lead of tetris over the best static policy, rssp, which met 60.0%", "+30.0 points"),
        ("lead of tetris over tetriserve, which met 90.0%", "+0.0 points"),
        ("SLO met, furthest predicted by table", "rssp, -20.0 points"),
        ("SLO met with image file, furthest predicted by table", "rssp, -15.0 points"),
        ("mean latency, furthest predicted by table", "tetris, +30.0%"),
        ("most idle between segments of a request on unchanged ranks", "tetriserve, 2.00%"),
        ("most of it for a single request", "c000.tetriserve r0, 5.00% of 1.00 s"),
        (
            "times as fast as one rank: a step at its fastest degree, of 4 ranks",
            "256x256 1.43, 512x512 3.08",
        ),
    )
