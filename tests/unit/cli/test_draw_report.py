"""`tetriserve report` draws what it is given and puts it on one page that needs no other file."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.reporting.timeline_figures import densest_window_s, excerpt
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.engine.timeline import TimelineFile, TimelineRecorder
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.workload import WorkloadSpec, generate

TABLE = LatencyTable.load(
    Path(__file__).parents[3] / "model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json"
)


def run(policy="tetriserve", timeline=None, **spec):
    workload = WorkloadSpec(requests=40, **spec)
    requests = [request.to_request() for request in generate(workload)]
    settings = SimulationSettings(8, SchedulerSettings(policy=policy))
    return simulate(TABLE, requests, settings, timeline=timeline, bound_on_time=39, labels=workload.labels())


def write_summary(folder, name, summary):
    (folder / f"{name}.summary.json").write_text(json.dumps(summary.to_dict()))


def report(*arguments, status=0):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def test_a_grid_is_drawn_on_one_self_contained_page(tmp_path):
    for policy in ("tetriserve", "fixed-sp2"):
        for scale in (1.0, 1.5):
            for rate in (12, 24):
                summary = run(policy, slo_scales=(scale,), rate_per_minute=rate)
                write_summary(tmp_path, f"{policy}-{scale}-{rate}", summary)
    report(tmp_path, "-o", tmp_path / "out")
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {
        "slo_attainment_by_slo_scale.png",
        "slo_attainment_by_rate.png",
        "slo_attainment_by_resolution.png",
        "latency_cdf.png",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    assert "fixed-sp2" in page and "of bound" in page


def test_one_run_has_no_lines_to_draw_but_bars_latencies_and_its_schedule(tmp_path):
    timeline = TimelineFile(tmp_path / "t.timeline.json")
    write_summary(tmp_path, "one", run(timeline=timeline))
    timeline.close()
    output = report(tmp_path / "one.summary.json", "--timeline", tmp_path / "t.timeline.json", "-o", tmp_path / "out")
    assert "1 runs, 4 figures" in output
    assert (tmp_path / "out" / "schedule_t.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "over_time.png").exists()


def test_the_excerpt_shows_the_densest_arrivals_and_all_that_runs_meanwhile():
    recorder = TimelineRecorder()
    run(timeline=recorder, rate_per_minute=60)
    view = TimelineView.from_events(recorder.events)
    window_s = densest_window_s(view, 10)
    assert window_s is not None and densest_window_s(view, 40) is None
    begin_s, end_s = window_s
    part = excerpt(view, begin_s, end_s)
    arrived = [request for request in part.requests if begin_s <= request.arrival_s]
    assert 10 <= len(arrived) < 40
    assert {name for span in part.work for name in span.request_ids} <= {r.request_id for r in part.requests}
    assert all(span.start_s < end_s and span.start_s + span.duration_s > begin_s for span in part.work)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "nonsense", '{"policy": "x"}'])
def test_a_file_that_is_no_summary_is_named(tmp_path, content):
    (tmp_path / "x.summary.json").write_text(content)
    assert "x.summary.json" in report(tmp_path / "x.summary.json", "-o", tmp_path / "out", status=2)


def test_nothing_to_draw_and_a_broken_timeline_are_explained(tmp_path):
    assert "at least one" in report("-o", tmp_path / "out", status=2)
    (tmp_path / "t.timeline.json").write_text("[]")
    assert "t.timeline.json" in report("--timeline", tmp_path / "t.timeline.json", "-o", tmp_path, status=2)
