"""Times are exact where profiled, on a straight line over latent tokens between, and refused outside."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.latency_table.test_format import H100
from tetriserve_backend.domain import LatencyTableError, image_tokens
from tetriserve_backend.latency_table import LatencyTable

TABLE = LatencyTable.load(H100)
SIDES = st.integers(1, 256).map(lambda n: n * 16)
SHAPES = st.tuples(SIDES, SIDES).filter(lambda shape: 256 <= image_tokens(*shape) <= 16384)


def test_profiled_points_are_exact():
    for entry in TABLE.to_dict()["step"]:
        seconds = TABLE.step_s(entry["height"], entry["width"], entry["sp"], entry["batch"])
        assert seconds == entry["seconds"]
    assert TABLE.decode_s(2048, 2048) == 0.25
    assert TABLE.encode_s() == 0.03


@pytest.mark.parametrize("shape", [(512, 2048), (2048, 512), (256, 4096)])
def test_equal_token_counts_take_equal_time(shape):
    assert TABLE.step_s(*shape, degree=4) == TABLE.step_s(1024, 1024, degree=4)
    assert TABLE.decode_s(*shape) == TABLE.decode_s(1024, 1024)


def test_between_profiled_resolutions_time_is_linear_in_tokens():
    low, high = TABLE.step_s(512, 512, 2), TABLE.step_s(1024, 1024, 2)
    share = (image_tokens(768, 512) - 1024) / (4096 - 1024)
    assert TABLE.step_s(768, 512, 2) == pytest.approx(low + share * (high - low), rel=1e-12)


@settings(derandomize=True, deadline=None)
@given(SHAPES, SHAPES)
def test_more_tokens_never_take_less_time(one, other):
    fewer, more = sorted((one, other), key=lambda shape: image_tokens(*shape))
    assert TABLE.step_s(*fewer, degree=1) <= TABLE.step_s(*more, degree=1)
    assert TABLE.decode_s(*fewer) <= TABLE.decode_s(*more)


@settings(derandomize=True, deadline=None)
@given(SHAPES)
def test_degrees_divide_the_tokens_and_have_a_time(shape):
    degrees = TABLE.degrees(*shape)
    assert degrees == tuple(sp for sp in (1, 2, 4, 8) if image_tokens(*shape) % sp == 0)
    assert TABLE.fastest_step_s(*shape) == min(TABLE.step_s(*shape, sp) for sp in degrees)
    assert TABLE.step_s(*shape, TABLE.fastest_degree(*shape)) == TABLE.fastest_step_s(*shape)


@pytest.mark.parametrize("shape", [(240, 256), (16, 16), (2064, 2048), (4096, 4096)])
def test_outside_the_profiled_range_the_error_names_the_range(shape):
    for lookup in (TABLE.check_resolution, TABLE.decode_s, TABLE.degrees, lambda h, w: TABLE.step_s(h, w, 1)):
        with pytest.raises(LatencyTableError, match=r"256 to 16384 \(height times width from 65536 to 4194304 pixels"):
            lookup(*shape)


@pytest.mark.parametrize("shape", [(250, 256), (256, 1000), (0, 256), (-256, 256)])
def test_sides_must_be_positive_multiples_of_16(shape):
    with pytest.raises(LatencyTableError, match="positive multiples of 16") as error:
        TABLE.check_resolution(*shape)
    assert error.value.allowed == "positive multiples of 16 pixels"


def test_unprofiled_degree_and_batch_are_refused_with_what_is_profiled():
    with pytest.raises(LatencyTableError, match=r"degree = 3, batch = 1; profiled .*\(2, 1\)"):
        TABLE.step_s(512, 512, 3)
    with pytest.raises(LatencyTableError, match="degree = 1, batch = 3"):
        TABLE.step_s(512, 512, 1, batch=3)


def test_a_degree_profiled_for_large_images_only_is_not_offered_for_small_ones():
    raw = TABLE.to_dict()
    raw["step"] = [entry for entry in raw["step"] if entry["sp"] < 8 or entry["height"] >= 1024]
    table = LatencyTable.from_dict(raw, "t")
    assert table.degrees(512, 512) == (1, 2, 4)
    assert table.degrees(1024, 1024) == (1, 2, 4, 8)


def test_table_restricted_to_ranks_splits_the_guidance_over_no_more_than_these():
    raw = TABLE.to_dict()
    raw["step"] += [
        {"height": 512, "width": 512, "sp": sp, "batch": 1, "cfg": 2, "seconds": 1e-3 / sp} for sp in (1, 2)
    ]
    table = LatencyTable.from_dict(raw, "t")
    assert table.restricted_to((1, 2), 4).step_s(512, 512, 4) == 5e-4
    two = table.restricted_to((1, 2), 2)
    assert two.degrees(512, 512) == (1, 2)
    assert two.fastest_step_s(512, 512) == 1e-3
    assert table.restricted_to((1, 2), 1).fastest_step_s(512, 512) == TABLE.step_s(512, 512, 1)


def test_restricted_table_offers_the_wanted_degrees_only():
    table = TABLE.restricted_to((1, 2, 16), 16)
    assert table.degrees(1024, 1024) == (1, 2)
    assert table.step_s(1024, 1024, 2) == TABLE.step_s(1024, 1024, 2)
    assert {entry["sp"] for entry in table.to_dict()["step"]} == {1, 2}
    assert {k: v for k, v in table.to_dict().items() if k != "step"} == {
        k: v for k, v in TABLE.to_dict().items() if k != "step"
    }
    with pytest.raises(LatencyTableError, match=r"step: has the degrees \[1, 2, 4, 8\]; expected one of \[3\]"):
        TABLE.restricted_to((3,), 8)
