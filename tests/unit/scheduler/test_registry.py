"""Policies by name, and settings that are refused with what is allowed."""

import pytest
from pydantic import ValidationError

from tests.unit.scheduler.conftest import make_request, make_table
from tetriserve_backend.domain import ConfigurationError, LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.round_length import round_length_s
from tetriserve_backend.scheduler.rssp import widest_efficient_degree


@pytest.mark.parametrize("name", ["tetriserve", "tetris", "rssp", "fcfs-optimal-shape", "fixed-sp1", "fixed-sp8"])
def test_a_policy_is_known_by_its_name(h100, name):
    assert make_policy(SchedulerSettings(policy=name), h100, 8).name == name


@pytest.mark.parametrize("name", ["", "fcfs", "fixed-sp3", "fixed-sp16", "fixed-sp0", "fixed-sp", "TetriServe"])
def test_an_unknown_policy_is_refused_with_the_list(h100, name):
    with pytest.raises(ConfigurationError, match=r"tetriserve, rssp, fcfs-optimal-shape, fixed-sp1, .*, fixed-sp8"):
        make_policy(SchedulerSettings(policy=name), h100, 8)


def test_fixed_degrees_end_at_the_world(h100):
    with pytest.raises(ConfigurationError, match=r"allowed: .*fixed-sp1, fixed-sp2$"):
        make_policy(SchedulerSettings(policy="fixed-sp4"), h100, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"policie": "rssp"},
        {"step_granularity": 0},
        {"max_segment_steps": 0},
        {"rssp_degrees": {"1024": 2}},
        {"rssp_degrees": {"1024x1024": 3}},
        {"rssp_degrees": {"1024x1024": 0}},
        {"boundary_grace": -0.1},
        {"pod_size": 6},
        {"pod_size": 0},
        {"segment_seconds": 0},
        {"late_limit_s": -1},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        SchedulerSettings(**settings)


def test_rssp_derives_the_degrees_of_the_paper(h100):
    model = CostModel(h100, 8)
    degrees = {side: widest_efficient_degree(model.of_shape(side, side), 0.9) for side in (256, 512, 1024, 2048)}
    assert degrees == {256: 1, 512: 1, 1024: 2, 2048: 8}


def test_rssp_degree_that_the_table_lacks_is_refused(h100):
    with pytest.raises(ConfigurationError, match=r"1024x1024: 16 is not a degree .*\[1, 2, 4, 8\]"):
        make_policy(SchedulerSettings(policy="rssp", rssp_degrees={"1024x1024": 16}), h100, 8)


def test_a_table_without_single_rank_times_is_refused(h100):
    raw = h100.to_dict()
    raw["step"] = [entry for entry in raw["step"] if entry["sp"] > 1 or entry["height"] < 2048]
    with pytest.raises(LatencyTableError) as error:
        make_policy(SchedulerSettings(), LatencyTable.from_dict(raw, "t.latency.json"), 8)
    told = "latency table t.latency.json: step: 2048x2048: expected an entry with sp = 1, batch = 1"
    assert str(error.value).startswith(told)
    fix = str(error.value).partition("; fix: ")[2]
    assert fix.startswith("`tetriserve profile --model") and "--degrees 1,2,4,8 --batches 1,2,4" in fix


def test_degrees_that_do_not_divide_the_tokens_are_never_used(h100):
    model = CostModel(h100, 8)
    odd = model.of_shape(2032, 2032)
    assert list(odd.step_s) == [1]
    assert list(model.of(make_request("r", 2048)).step_s) == [1, 2, 4, 8]


def test_round_length_fits_whole_steps_of_every_resolution(h100):
    model = CostModel(h100, 8)
    shapes = [model.of_shape(*shape) for shape in h100.resolutions]
    length_s = round_length_s(shapes, 5)
    assert length_s == pytest.approx(5 * h100.step_s(512, 512, 1) + h100.dispatch_s)
    assert [int((length_s - h100.dispatch_s) / costs.fastest.step_s + 1e-9) for costs in shapes] == [6, 5, 4, 2]


def test_round_length_fits_whole_steps_of_every_degree():
    """Four steps of 0.12 s fit as well as five, but only five end where steps on one rank do."""
    shapes = [CostModel(make_table({512: (0.2, 0.12)}, 2), 2).of_shape(512, 512)]
    assert round_length_s(shapes, 5) == pytest.approx(0.6)


def test_a_round_holds_at_least_one_step_of_the_slowest_resolution():
    table = make_table({256: (0.1,), 512: (0.1,), 1024: (9.0,)}, 1, stage_s=0.5)
    model = CostModel(table, 1)
    assert round_length_s([model.of_shape(*shape) for shape in table.resolutions], 1) >= 9.5


def test_round_length_grows_with_the_granularity(h100):
    model = CostModel(h100, 8)
    shapes = [model.of_shape(*shape) for shape in h100.resolutions]
    lengths = [round_length_s(shapes, granularity) for granularity in (1, 3, 5, 10, 15)]
    assert lengths == sorted(lengths)
