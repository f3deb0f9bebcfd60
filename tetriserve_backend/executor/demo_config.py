"""Sizes of the embedded models."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What all families have: 8 heads, so that up to 8 ranks can share a step, and few wide layers.

    Thin layers would spend their time on communication and not scale. `format_version` changes with the
    generator. `text_width` is T5's; `text_tokens` is what T5 is asked for at most.
    """

    format_version: int = 1
    seed: int = 20
    num_layers: int = 1
    num_heads: int = 8
    head_dim: int = 32
    text_width: int = 64
    text_layers: int = 2
    text_tokens: int = 64
    latent_channels: int = 16
    vae_channels: tuple[int, ...] = (8, 8, 16, 16)

    @property
    def digest(self) -> str:
        """Names the directory, so that another configuration gets another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class DemoFluxConfig(DemoConfig):
    """A FLUX.1 directory; the defaults are those of `demo-flux`.

    So many single layers that a step of 512×512 on two cores lasts at least 200 times as long as handing its latent
    over, much of which is waking up a core that idles.
    """

    num_single_layers: int = 3
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    guidance_embeds: bool = True


@dataclass(frozen=True, slots=True)
class DemoSd3Config(DemoConfig):
    """A Stable Diffusion 3 directory; the defaults are those of `demo-sd3`.

    Attributes:
        max_patches: patches of 16 pixels along the longer side of the largest image.
        dual_attention_layers, qk_norm: as in Stable Diffusion 3.5 Medium and Large.
        has_t5: the family may be used without its third text encoder.
    """

    num_layers: int = 2
    max_patches: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None
    has_t5: bool = True
