"""A request gets what its model can do, or an error that says what that is."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.latency_table.test_format import H100
from tests.unit.triton_adapter.test_denoise_server import check_resolution, make_spec
from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.triton_adapter.model_fit import fitted_to_model, resolution_check, served_model
from tetriserve_backend.triton_adapter.request_checks import load_spec
from tetriserve_backend.triton_adapter.request_spec import RequestSpec
from tetriserve_backend.triton_adapter.settings import RequestDefaults

FLUX: dict[str, object] = {"model": "flux", "max_sequence_length": 512}
SD3: dict[str, object] = {
    "model": "sd3", "max_sequence_length": 256, "supports_negative_prompt": True,
    "default_guidance_scale": 7.0, "max_side": 128,
}  # fmt: skip


def spec(**changes: Any) -> RequestSpec:
    return replace(load_spec(make_spec(), RequestDefaults(), now_s=10.0), **changes)


@pytest.mark.parametrize(("asked", "served"), [("", ["a"]), ("a", ["a"]), ("a", ["a", "b"])])
def test_model_is_the_one_named_or_the_only_one(asked: str, served: list[str]) -> None:
    assert served_model(asked, served) == "a"


@pytest.mark.parametrize(
    ("asked", "served", "message"),
    [
        ("c", ["a", "b"], "model: got 'c'; allowed: a, b"),
        ("", ["a", "b"], "model: missing; allowed: a, b"),
        ("", [], "model: missing; allowed: none at present"),
    ],
)
def test_model_that_is_not_served_is_refused_with_those_that_are(asked: str, served: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        served_model(asked, served)
    assert str(caught.value) == message


def test_what_the_request_leaves_open_is_the_models_own() -> None:
    fitted = fitted_to_model(spec(guidance_scale=None), SD3, check_resolution)
    assert (fitted.model, fitted.guidance_scale) == ("sd3", 7.0)
    assert fitted_to_model(spec(guidance_scale=0.0), SD3, check_resolution).guidance_scale == 0.0


def test_negative_prompt_is_for_models_with_guidance() -> None:
    wish = spec(negative_prompt="blurry")
    assert fitted_to_model(wish, SD3, check_resolution).to_requests()[0].negative_prompt == "blurry"
    with pytest.raises(InvalidRequestError, match=r"^negative_prompt: model flux has no true classifier-free"):
        fitted_to_model(wish, FLUX, check_resolution)


@pytest.mark.parametrize(("facts", "allowed"), [(FLUX, 512), (SD3, 256)])
def test_text_length_is_the_servers(facts: dict[str, object], allowed: int) -> None:
    fitted = fitted_to_model(spec(max_sequence_length=allowed), facts, check_resolution)
    assert fitted.to_requests()[0].max_sequence_length is None, "it may share steps with others"
    with pytest.raises(InvalidRequestError, match=f"^max_sequence_length: got 77; allowed: {allowed}, "):
        fitted_to_model(spec(max_sequence_length=77), facts, check_resolution)


def test_shorter_text_is_served_where_all_degrees_can_share_it() -> None:
    facts = {**FLUX, "text_multiple": 8}
    assert (
        fitted_to_model(spec(max_sequence_length=80), facts, check_resolution).to_requests()[0].max_sequence_length
        == 80
    )
    for wrong in (77, 520):
        message = f"^max_sequence_length: got {wrong}; allowed: 512 or a smaller multiple of 8, "
        with pytest.raises(InvalidRequestError, match=message):
            fitted_to_model(spec(max_sequence_length=wrong), facts, check_resolution)


@pytest.mark.parametrize("side", ["height", "width"])
def test_side_is_limited_where_the_model_limits_it(side: str) -> None:
    fitted_to_model(spec(**{side: 128}), SD3, check_resolution)
    fitted_to_model(spec(**{side: 144}), {**FLUX, "max_side": None}, check_resolution)
    with pytest.raises(InvalidRequestError, match=f"^{side}: got 144; allowed: at most 128 pixels with model sd3"):
        fitted_to_model(spec(**{side: 144}), SD3, check_resolution)


def test_compiled_model_is_served_at_the_resolutions_of_its_table_alone() -> None:
    table = LatencyTable.load(H100)
    fitted_to_model(spec(height=1008, width=1024), FLUX, resolution_check(table, is_compiled=False))
    compiled = resolution_check(table, is_compiled=True)
    fitted_to_model(spec(height=1024, width=1024), FLUX, compiled)
    message = "^height, width: got 1008x1024; allowed: 256x256, 512x512, 1024x1024, 2048x2048$"
    with pytest.raises(InvalidRequestError, match=message):
        fitted_to_model(spec(height=1008, width=1024), FLUX, compiled)
