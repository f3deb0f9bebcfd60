"""Directories in diffusers format with the true sizes of known models, but without weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.demo_models import DEMO_MODELS
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.executor.made_directory import complete_or_not_at_all, have_made, make_as_told
from tetriserve_backend.executor.stored_weights import NUMBERS
from tetriserve_profiling.analytic.model import FluxSizes, Model, TextEncoder, load_model

_FORMAT = 2
"""Of the folder, beside the sizes that a model's description tells: another number where one made before is wrong."""


def without_weights(settings: ModelSettings) -> tuple[ModelSettings, str]:
    """The same model with random weights, and the name by which servers know it.

    A model that is neither a folder nor an embedded one is looked up among those whose sizes are known
    (`analytic.model.load_model`), and a folder of these sizes is made below `tetriserve_home` if it is not there yet.
    What that lacks of the original beside weights are the vocabularies of its tokenizers, which are byte by byte.

    Raises:
        ConfigurationError: there is no such model, or the folder could not be made.
    """
    if Path(settings.path).is_dir() or settings.path in DEMO_MODELS:
        return settings.model_copy(update={"random_weights": True}), settings.path
    model = load_model(settings.path)
    digest = hashlib.sha256(f"{_FORMAT}{model.model_dump_json()}".encode()).hexdigest()[:12]
    directory = tetriserve_home() / "models" / f"{model.name}-blank-{digest}"
    if not directory.is_dir():
        _make_blank_model(settings.path, directory)
    return settings.model_copy(update={"random_weights": True, "path": str(directory)}), model.model


def _make_blank_model(name_or_path: str, directory: Path) -> None:
    have_made("tetriserve_profiling.blank_model", name_or_path, directory, f"{name_or_path} without weights")


def write_blank_model(model: Model, directory: Path) -> None:
    """Write configurations, noise schedule and tokenizers of a model, complete or not at all.

    Raises:
        OSError: they cannot be written.
    """
    with complete_or_not_at_all(directory) as unfinished:
        pipeline = _pipeline(model)
        pipeline.save_config(unfinished)
        numbers: dict[str, int] = {}
        for name, part in pipeline.components.items():
            _save_without_weights(part, unfinished / name)
            if hasattr(part, "parameters"):
                numbers[name] = sum(tensor.numel() for tensor in part.parameters())
        (unfinished / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _save_without_weights(part: Any, folder: Path) -> None:
    if part is None:
        return
    if hasattr(part, "save_config"):
        part.save_config(folder)
    elif hasattr(part, "config"):
        part.config.save_pretrained(folder)
    else:
        part.save_pretrained(folder)


def _pipeline(model: Model) -> Any:
    """The pipeline on the meta device, where networks have sizes and nothing else."""
    import torch  # noqa: PLC0415  (takes seconds, as does what follows)
    from diffusers import (  # noqa: PLC0415
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection  # noqa: PLC0415

    from tetriserve_backend.executor.demo_pipeline import (  # noqa: PLC0415
        FLUX_LATENTS,
        FLUX_SCHEDULE,
        SD3_LATENTS,
        SD3_SCHEDULE,
        clip_tokenizer,
        t5_tokenizer,
    )

    sizes = model.transformer.model_dump(exclude={"class_name"}, exclude_none=True)
    clips = [encoder for encoder in model.text_encoders if encoder.kind == "clip"]
    (t5,) = (encoder for encoder in model.text_encoders if encoder.kind == "t5")
    tokenizer = clip_tokenizer()
    is_flux = isinstance(model.transformer, FluxSizes)
    scale = FLUX_LATENTS if is_flux else SD3_LATENTS
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(model.vae.block_out_channels),
            up_block_types=("UpDecoderBlock2D",) * len(model.vae.block_out_channels),
            use_quant_conv=False,
            use_post_quant_conv=False,
            **model.vae.model_dump(),
            **scale,
        )
        if is_flux:
            return FluxPipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
                vae=vae,
                text_encoder=CLIPTextModel(_clip_config(clips[0], tokenizer)),
                tokenizer=tokenizer,
                text_encoder_2=_t5(t5),
                tokenizer_2=t5_tokenizer(t5.tokens),
                transformer=FluxTransformer2DModel(**sizes),
            )
        return StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SD3_SCHEDULE),
            vae=vae,
            text_encoder=CLIPTextModelWithProjection(_clip_config(clips[0], tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(_clip_config(clips[1], tokenizer)),
            tokenizer_2=tokenizer,
            text_encoder_3=_t5(t5),
            tokenizer_3=t5_tokenizer(t5.tokens),
            transformer=SD3Transformer2DModel(sample_size=128, pos_embed_max_size=192, **sizes),
        )


def _clip_config(encoder: TextEncoder, tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig  # noqa: PLC0415

    return CLIPTextConfig(
        vocab_size=encoder.vocabulary,
        hidden_size=encoder.hidden_size,
        projection_dim=encoder.hidden_size,
        intermediate_size=encoder.intermediate_size,
        num_hidden_layers=encoder.num_layers,
        num_attention_heads=encoder.hidden_size // 64,
        max_position_embeddings=encoder.tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5(encoder: TextEncoder) -> Any:
    from transformers import T5Config, T5EncoderModel  # noqa: PLC0415

    return T5EncoderModel(
        T5Config(
            vocab_size=encoder.vocabulary,
            d_model=encoder.hidden_size,
            d_kv=64,
            d_ff=encoder.intermediate_size,
            num_layers=encoder.num_layers,
            num_heads=encoder.hidden_size // 64,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def _make(name_or_path: str, directory: Path) -> None:
    write_blank_model(load_model(name_or_path), directory)


if __name__ == "__main__":
    make_as_told(_make)
