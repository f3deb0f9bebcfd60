"""A model of which only the sizes are known runs on real ranks, and all ranks have the same weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.integration.executor.driver import Driver, make_request
from tests.integration.executor.test_parity import assert_same_image
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.models import parts
from tetriserve_backend.executor.models.text_encoders import TEXT_ENCODERS, place_parts
from tetriserve_backend.executor.stored_weights import made_weights
from tetriserve_profiling.analytic.model import Model, load_model
from tetriserve_profiling.blank_model import without_weights, write_blank_model

CLASSES = {
    "FluxPipeline": (FluxPipeline, FluxTransformer2DModel),
    "StableDiffusion3Pipeline": (StableDiffusion3Pipeline, SD3Transformer2DModel),
}
TEXT = {"intermediate_size": 128, "num_layers": 1, "vocabulary": 1000}
SMALL = {"num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 4, "joint_attention_dim": 64}


def small(name: str) -> Model:
    """A model that is known, with fewer and thinner layers."""
    known = load_model(name).model_dump(by_alias=True)
    width = {"clip": 64, "t5": 64}
    transformer = known["transformer"] | SMALL
    if known["guided"]:
        # The two CLIP embeddings lie side by side, and become as wide as T5's.
        width = {"clip": 64, "t5": 128}
        transformer |= {"joint_attention_dim": 128, "pooled_projection_dim": 128, "caption_projection_dim": 128}
    else:
        transformer |= {"num_single_layers": 1, "pooled_projection_dim": 64, "attention_head_dim": 128}
    encoders = [encoder | TEXT | {"hidden_size": width[encoder["kind"]]} for encoder in known["text_encoders"]]
    vae = known["vae"] | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    return Model.model_validate(known | {"transformer": transformer, "text_encoders": encoders, "vae": vae})


def test_a_model_that_is_known_by_name_has_its_true_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETRISERVE_HOME", str(tmp_path))
    settings, known_as = without_weights(ModelSettings(path="FLUX.1-dev"))
    assert known_as == "black-forest-labs/FLUX.1-dev"
    numbers = {part.name: part.loaded_bytes("bfloat16") / 2e9 for part in made_weights(Path(settings.path))}
    # Billions, as the model's cards tell.
    assert numbers == pytest.approx(
        {"transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.0838}, rel=0.01
    )


@pytest.mark.parametrize("name", ["FLUX.1-dev", "SD3-medium", "SD3.5-large"])
def test_a_large_image_is_decoded_in_tiles_as_large_as_those_of_the_true_model(name: str, tmp_path: Path) -> None:
    write_blank_model(load_model(name), tmp_path / "blank")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(tmp_path / "blank" / "vae"))
    # diffusers' own default is 32: 4096² pixels would be decoded in tens of thousands of tiles.
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (1024, 128)


@pytest.fixture(params=["FLUX.1-dev", "SD3-medium"])
def blank(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_blank_model(small(request.param), tmp_path / "blank")
    assert not list((tmp_path / "blank").rglob("*.safetensors"))
    return tmp_path / "blank"


@pytest.mark.parametrize(("text_encoder_ranks", "made_on"), [(0, "cpu"), (None, "meta")])
def test_text_encoders_are_made_where_they_are_kept(
    blank: Path, text_encoder_ranks: int | None, made_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, set[str]] = {}

    def place(pipeline: DiffusionPipeline, device: torch.device, keeps_encoders: bool) -> None:
        made.update({
            name: {weight.device.type for weight in part.parameters()}
            for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
        })  # fmt: skip
        place_parts(pipeline, device, keeps_encoders)

    monkeypatch.setattr(parts, "place_parts", place)
    settings = ModelSettings(path=str(blank), random_weights=True, text_encoder_ranks=text_encoder_ranks)
    # The meta device stands for a GPU: what is made there takes no memory of the host, and cannot come back to it.
    device = torch.device("meta")
    pipeline_class, transformer_class = CLASSES[json.loads((blank / "model_index.json").read_text())["_class_name"]]
    transformer = parts.load_transformer(transformer_class, blank, settings, device, torch.float32)
    parts.load_pipeline(pipeline_class, blank, transformer, settings, device)
    assert {name: devices for name, devices in made.items() if name in TEXT_ENCODERS} == {
        name: {made_on} for name in TEXT_ENCODERS if (blank / name).is_dir()
    }
    assert made["transformer"] == made["vae"] == {"meta"}


@pytest.fixture
def ranks(blank: Path) -> Iterator[Driver]:
    driver = Driver(ModelSettings(path=str(blank), random_weights=True), ExecutorSettings(world_size=2))
    try:
        yield driver.start()
    finally:
        driver.stop()


def test_a_model_without_weights_runs_on_any_ranks_with_the_same_result(ranks: Driver) -> None:
    request = make_request(128, 128)
    alone = ranks.generate(request, (((0,), 4),))
    assert alone.shape == (128, 128, 3) and alone.std() > 0
    assert_same_image(ranks.generate(request, (((1,), 1), ((0, 1), 2), ((1,), 1)), decode_on=1), alone)
