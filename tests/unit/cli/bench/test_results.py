"""What is done stays done, and results of different settings never mix."""

import pytest

from tests.unit.cli.bench.test_spec import BENCHMARKS, write
from tetriserve_backend.cli.bench.results import ResultFolder, runs_of
from tetriserve_backend.cli.bench.spec import read_spec
from tetriserve_backend.domain import ConfigurationError, SegmentKind
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.quantiles import QuantileSketch
from tetriserve_backend.simulator.summary import SummaryBuilder


def some_summary(policy):
    return SummaryBuilder(2).build(policy, QuantileSketch())


def test_runs_come_policy_by_policy_and_share_their_traces(tmp_path):
    runs = list(runs_of(read_spec(write(tmp_path), ["grid.seeds=[1, 2]", "grid.rates_per_minute=[6]"]).grid))
    assert [run.name for run in runs] == ["c000.tetris", "c001.tetris", "c000.fixed-sp1", "c001.fixed-sp1"]
    folder = ResultFolder(tmp_path)
    assert folder.trace(runs[0]) == folder.trace(runs[2]) != folder.trace(runs[1])


def test_a_run_is_done_once_its_summary_is_there(tmp_path):
    spec = read_spec(write(tmp_path), [])
    folder, runs = ResultFolder(tmp_path / "out"), list(runs_of(spec.grid))
    folder.claim(spec, fresh=False)
    folder.write_summary(runs[0], some_summary("tetris"))
    folder.claim(spec, fresh=False)
    assert [folder.is_done(run) for run in runs[:2]] == [True, False]
    assert folder.read_summary(runs[0]) == some_summary("tetris")


def test_other_settings_are_refused_unless_begun_afresh(tmp_path):
    folder = ResultFolder(tmp_path / "out")
    spec, other = read_spec(write(tmp_path), []), read_spec(write(tmp_path), ["grid.seeds=[9]"])
    folder.claim(spec, fresh=False)
    folder.write_summary(next(runs_of(spec.grid)), some_summary("tetris"))
    with pytest.raises(ConfigurationError, match=r"other settings \(grid\)"):
        folder.claim(other, fresh=False)
    folder.claim(other, fresh=True)
    assert not folder.is_done(next(runs_of(other.grid)))


@pytest.mark.parametrize("text", ["{", "[]", "null", '"grid"'])
def test_a_note_that_cannot_be_read_is_named_with_the_way_out(tmp_path, text):
    spec, folder = read_spec(write(tmp_path), []), ResultFolder(tmp_path / "out")
    folder.claim(spec, fresh=False)
    (tmp_path / "out" / "bench.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"out/bench\.json: .*--fresh or another --out"):
        folder.claim(spec, fresh=False)
    folder.claim(spec, fresh=True)


def test_a_table_that_has_changed_since_is_another_setting(tmp_path):
    (tmp_path / "t.latency.json").write_text("one")
    spec = read_spec(write(tmp_path, where="simulator", latency_table="t.latency.json"), [])
    folder = ResultFolder(tmp_path / "out")
    folder.claim(spec, fresh=False)
    folder.claim(spec, fresh=False)
    (tmp_path / "t.latency.json").write_text("two")
    with pytest.raises(ConfigurationError, match="latency_table_sha256"):
        folder.claim(spec, fresh=False)


def test_what_work_cost_is_the_mean_of_all_tables(tmp_path):
    folder = ResultFolder(tmp_path)
    tables = BENCHMARKS.parents[1] / "model_repository/denoise/latency_tables"
    table = LatencyTable.load(tables / "flux1-dev-8xh100.latency.json")
    table.save(folder.table)
    assert folder.pooled_table().to_dict() == table.to_dict()
    table.corrected(lambda work: 1.2 if work.kind is SegmentKind.DENOISE else 1.4).save(folder.table_after(0))
    table.corrected(lambda work: 1.1).save(folder.table_after(1))
    pooled = folder.pooled_table()
    assert pooled.step_s(512, 512, 2) == pytest.approx(1.1 * table.step_s(512, 512, 2))
    assert pooled.decode_s(512, 512) == pytest.approx(3.5 / 3 * table.decode_s(512, 512))


def test_a_folder_that_is_no_benchmark_is_never_thrown_away(tmp_path):
    (tmp_path / "precious").write_text("mine")
    ResultFolder(tmp_path).claim(read_spec(write(tmp_path), []), fresh=True)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("fresh", [False, True])
def test_summaries_of_somebody_else_are_refused_and_stay(tmp_path, fresh):
    (tmp_path / "c000.tetris.summary.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"c000\.tetris\.summary\.json but no bench\.json.*another --out"):
        ResultFolder(tmp_path).claim(read_spec(write(tmp_path), []), fresh=fresh)
    assert (tmp_path / "c000.tetris.summary.json").exists() and not (tmp_path / "bench.json").exists()
