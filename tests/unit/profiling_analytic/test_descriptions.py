"""Descriptions of GPUs and models, and what is said of wrong ones."""

import json
from pathlib import Path

import pytest
import yaml

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.calibration import load_calibration
from tetriserve_profiling.analytic.catalog import shipped_file, shipped_names
from tetriserve_profiling.analytic.gpu import load_gpu
from tetriserve_profiling.analytic.model import load_model


def own_gpu(tmp_path: Path, **changes) -> str:
    values = yaml.safe_load(shipped_file("gpus", "H100.yaml").read_text())
    for key, value in changes.items():
        values[key] = value
        if value is None:
            del values[key]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_all_gpus_and_models_that_are_promised_are_shipped():
    assert set(shipped_names("gpus")) == {"H100", "H200", "A100", "A40", "L40S", "B200"}
    assert {"FLUX.1-dev", "SD3-medium"} <= set(shipped_names("models"))
    assert load_gpu("h100").device == "NVIDIA H100 80GB HBM3"
    assert load_model("flux.1-dev") == load_model("black-forest-labs/FLUX.1-dev")


def test_degrees_divide_the_heads_and_the_text_that_is_not_padded():
    assert load_model("FLUX.1-dev").shared_counts == {"attention heads": 24, "text tokens": 512}
    assert load_model("SD3.5-large").shared_counts == {"attention heads": 38}


def test_each_gpu_tells_where_its_figures_are_from():
    for name in shipped_names("gpus"):
        assert "datasheet" in shipped_file("gpus", f"{name}.yaml").read_text().splitlines()[0]


def test_unknown_names_are_answered_with_what_is_allowed():
    with pytest.raises(ConfigurationError, match=r"gpu: 'H300' is not known; allowed: A100, A40, .*path of a YAML"):
        load_gpu("H300")
    with pytest.raises(ConfigurationError, match=r"model: 'SDXL' is not known; allowed: FLUX.1-dev, SD3-medium"):
        load_model("SDXL")
    with pytest.raises(ConfigurationError, match=r"software: 'fast' is not known; allowed: eager, compile"):
        load_calibration().software_named("fast")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bf16_dense_tflops": None}, "bf16_dense_tflops: missing"),
        ({"memory_gb": -1}, "memory_gb: .*greater than 0, got -1"),
        ({"tflops": 3}, "tflops: unknown; allowed: .*bf16_dense_tflops"),
        ({"achieved": {"matmul": 1.5}}, r"achieved.matmul: .*less than or equal to 1, got 1.5"),
        ({"links": [{"name": "a", "gpus": 2}]}, r"links.0.bandwidth_gb_per_s: missing"),
        (
            {"links": 2 * [{"name": "a", "gpus": 2, "bandwidth_gb_per_s": 1, "achieved": 1, "latency_us": 0}]},
            "expected each to join more GPUs than the one before",
        ),
    ],
)
def test_a_wrong_gpu_file_is_refused_with_the_file_the_field_and_the_fix(tmp_path, changes, problem):
    path = own_gpu(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_gpu(path)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_what_is_no_mapping_is_refused_with_the_file(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=str(path)):
        load_gpu(str(path))


def test_a_gpus_own_shares_go_before_the_calibrated_ones(tmp_path):
    calibration = load_calibration()
    achieved = calibration.achieved_on(load_gpu(own_gpu(tmp_path, achieved={"attention": 0.7})))
    assert achieved.attention == 0.7
    assert achieved.matmul == calibration.achieved.matmul


def own_config(tmp_path: Path, **changes) -> Path:
    folder = tmp_path / "my-flux" / "transformer"
    folder.mkdir(parents=True)
    values = yaml.safe_load(shipped_file("models", "FLUX.1-dev.yaml").read_text())["transformer"]
    (folder / "config.json").write_text(json.dumps({**values, "axes_dims_rope": [16, 56, 56], **changes}))
    return folder / "config.json"


def test_a_transformers_own_config_takes_the_rest_from_the_shipped_model_of_its_class(tmp_path):
    model = load_model(str(own_config(tmp_path, num_layers=8)))
    shipped = load_model("FLUX.1-dev")
    assert (model.name, model.model, model.transformer.num_layers) == ("my-flux", "my-flux", 8)
    assert (model.vae, model.text_encoders, model.guided) == (shipped.vae, shipped.text_encoders, False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name: expected FluxTransformer2DModel or .*, got 'UNet2DModel'"),
        ({"num_layers": 0}, "num_layers: .*greater than or equal to 1, got 0"),
        ({"num_layers": None}, "num_layers: "),
    ],
)
def test_a_wrong_config_is_refused_with_the_file_and_the_field(tmp_path, changes, problem):
    path = own_config(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(str(path))
