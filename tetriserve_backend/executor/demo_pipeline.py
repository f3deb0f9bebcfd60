"""Small FLUX.1 and Stable Diffusion 3 pipelines with seeded random weights, built without any file."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tetriserve_backend.executor.demo_config import DemoConfig, DemoFluxConfig, DemoSd3Config

CLIP_TOKENS = 77
FLUX_SCHEDULE: Mapping[str, Any] = {
    "use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15,
    "base_image_seq_len": 256, "max_image_seq_len": 4096,
}  # fmt: skip
"""The noise schedule of FLUX.1-dev, and how its latents are scaled."""
FLUX_LATENTS: Mapping[str, float] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SD3_SCHEDULE: Mapping[str, Any] = {"shift": 3.0}
"""Those of Stable Diffusion 3."""
SD3_LATENTS: Mapping[str, float] = {"scaling_factor": 1.5305, "shift_factor": 0.0609}

_PRINTABLE_ASCII = range(33, 127)
_UNKNOWN_PENALTY = -3.0


def make_pipeline(config: DemoConfig) -> Any:
    """A complete pipeline; the same configuration gives the same weights.

    Raises:
        TypeError: there is no such family.
    """
    torch.manual_seed(config.seed)
    if isinstance(config, DemoFluxConfig):
        return _flux_pipeline(config)
    if isinstance(config, DemoSd3Config):
        return _sd3_pipeline(config)
    raise TypeError(f"no family for {type(config).__name__}")


def _flux_pipeline(config: DemoFluxConfig) -> Any:
    """With the noise schedule and the scaling of latents of FLUX.1-dev."""
    tokenizer = clip_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
        vae=_vae(config, FLUX_LATENTS),
        text_encoder=CLIPTextModel(_clip_config(config, tokenizer, config.text_width)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=_t5(config),
        tokenizer_2=t5_tokenizer(config.text_tokens),
        transformer=_flux_transformer(config),
    )


def _sd3_pipeline(config: DemoSd3Config) -> Any:
    """With the noise schedule and the scaling of latents of Stable Diffusion 3."""
    tokenizer = clip_tokenizer()
    # The two CLIP embeddings lie side by side and must not be wider than T5's.
    clip_config = _clip_config(config, tokenizer, config.text_width // 2)
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SD3_SCHEDULE),
        vae=_vae(config, SD3_LATENTS),
        text_encoder=CLIPTextModelWithProjection(clip_config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(config) if config.has_t5 else None,
        tokenizer_3=t5_tokenizer(config.text_tokens) if config.has_t5 else None,
        transformer=_sd3_transformer(config),
    )


def _flux_transformer(config: DemoFluxConfig) -> Any:
    transformer = FluxTransformer2DModel(
        in_channels=4 * config.latent_channels,
        num_layers=config.num_layers,
        num_single_layers=config.num_single_layers,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        joint_attention_dim=config.text_width,
        pooled_projection_dim=config.text_width,
        axes_dims_rope=config.rope_axes,
        guidance_embeds=config.guidance_embeds,
    ).eval()
    _strengthen_text(transformer)
    return transformer


def _sd3_transformer(config: DemoSd3Config) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=64,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        joint_attention_dim=config.text_width,
        caption_projection_dim=config.num_heads * config.head_dim,
        pooled_projection_dim=config.text_width,
        pos_embed_max_size=config.max_patches,
        dual_attention_layers=config.dual_attention_layers,
        qk_norm=config.qk_norm,
    ).eval()
    _strengthen_text(transformer)
    return transformer


def _vae(config: DemoConfig, scale: Mapping[str, float]) -> Any:
    levels = len(config.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=4,
        # Its cost grows with the square of the pixels, and here it would outweigh the transformer.
        mid_block_add_attention=False,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **scale,
    ).eval()
    _soften(vae.decoder)
    return vae


@torch.no_grad()
def _strengthen_text(transformer: Any) -> None:
    """With random weights the prompt would hardly show; these factors make it change the whole picture."""
    embedder = transformer.time_text_embed.text_embedder
    for layer, factor in (
        (embedder.linear_1, 2.0),
        (embedder.linear_2, 2.0),
        (transformer.norm_out.linear, 2.0),
        (transformer.proj_out, 2.5),
    ):
        layer.weight.mul_(factor)


@torch.no_grad()
def _soften(decoder: Any) -> None:
    """Turn pixel noise into patches of colour: kernels closer to their mean, as strong as before."""
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            strength = module.weight.std()
            module.weight.lerp_(module.weight.mean((2, 3), keepdim=True).expand_as(module.weight), 0.75)
            module.weight.mul_(strength / module.weight.std())


def clip_tokenizer() -> Any:
    """Byte by byte, without merges."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=CLIP_TOKENS)


def _clip_config(config: DemoConfig, tokenizer: Any, width: int) -> Any:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_tokenizer(text_tokens: int) -> Any:
    """Printable ASCII, one token a character; all else is unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), _UNKNOWN_PENALTY) for code in _PRINTABLE_ASCII]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=text_tokens)


def _t5(config: DemoConfig) -> Any:
    return T5EncoderModel(
        T5Config(
            vocab_size=4 + len(_PRINTABLE_ASCII),
            d_model=config.text_width,
            d_kv=config.text_width // 4,
            d_ff=2 * config.text_width,
            num_layers=config.text_layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    ).eval()
