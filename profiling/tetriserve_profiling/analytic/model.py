"""What is known of a model: the sizes of its transformer, text encoders and VAE."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.catalog import (
    Description,
    check_description,
    read_description,
    read_yaml,
    shipped_file,
    shipped_names,
)

_Count: TypeAlias = Annotated[int, Field(ge=1)]

FLUX, SD3 = "FluxTransformer2DModel", "SD3Transformer2DModel"


class _TransformerSizes(Description):
    # A config.json of diffusers tells more than its sizes.
    model_config = ConfigDict(frozen=True, extra="ignore")

    class_name: str = Field(alias="_class_name")
    in_channels: _Count
    num_layers: _Count
    attention_head_dim: _Count
    num_attention_heads: _Count
    joint_attention_dim: _Count
    pooled_projection_dim: _Count
    out_channels: _Count | None = None

    @property
    def width(self) -> int:
        """Channels of a token between layers."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def output_channels(self) -> int:
        """Channels of the velocity."""
        return self.out_channels or self.in_channels


class FluxSizes(_TransformerSizes):
    """Sizes of FLUX.1, by the names in its config.json."""

    num_single_layers: _Count
    guidance_embeds: bool = False
    patch_size: Literal[1] = 1


class Sd3Sizes(_TransformerSizes):
    """Sizes of Stable Diffusion 3 and 3.5, by the names in its config.json."""

    caption_projection_dim: _Count
    patch_size: Literal[2] = 2
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None


def _class_name(values: Any) -> str | None:
    return values.get("_class_name") if isinstance(values, dict) else getattr(values, "class_name", None)


Transformer: TypeAlias = Annotated[
    Annotated[FluxSizes, Tag(FLUX)] | Annotated[Sd3Sizes, Tag(SD3)], Discriminator(_class_name)
]


class TextEncoder(Description):
    """Sizes of one text encoder; `tokens` is what every prompt is padded or cut to."""

    kind: Literal["clip", "t5"]
    tokens: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_layers: _Count
    vocabulary: _Count


class Vae(Description):
    """Sizes of the VAE's decoder, by the names in its config.json.

    Attributes:
        sample_size: pixels of a side of the tiles in which a large image is decoded.
    """

    latent_channels: _Count
    block_out_channels: Annotated[tuple[_Count, ...], Field(min_length=1)]
    layers_per_block: _Count
    sample_size: _Count


class Model(Description):
    """A whole pipeline.

    Attributes:
        name: for people.
        model: the name that a server has for it, by which a latency table is found.
        text_tokens: length of the text stream in the transformer.
        guided: whether each step takes two passes, with the prompt and without (classifier-free guidance).
    """

    name: str
    model: str
    text_tokens: _Count
    guided: bool
    transformer: Transformer
    text_encoders: tuple[TextEncoder, ...]
    vae: Vae

    @property
    def shared_counts(self) -> dict[str, int]:
        """What each sequence-parallel degree must divide besides the image tokens, by name.

        Stable Diffusion 3's text is padded to what the degree divides.
        """
        heads = {"attention heads": self.transformer.num_attention_heads}
        return heads | {"text tokens": self.text_tokens} if isinstance(self.transformer, FluxSizes) else heads


def load_model(name_or_path: str) -> Model:
    """A shipped description by its name, or one whose transformer is that of a diffusers config.json.

    With a config.json, everything but the transformer is as in the shipped model of the same class, and the
    folder that it lies in gives the name.

    Raises:
        ConfigurationError: there is no such name or file, or the file is wrong or of another architecture.
    """
    for model in _shipped_models():
        if name_or_path.lower() in (model.name.lower(), model.model.lower()):
            return model
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigurationError(
            f"model: '{name_or_path}' is not known; allowed: {', '.join(shipped_names('models'))}, or the path of a "
            "transformer's config.json in diffusers format"
        )
    values = read_yaml(path)
    found = _class_name(values)
    for model in _shipped_models():
        if model.transformer.class_name == found:
            folder = path.resolve().parent
            name = folder.parent.name if folder.name == "transformer" else folder.name
            sizes = check_description(values, type(model.transformer), str(path))
            return model.model_copy(update={"name": name, "model": name, "transformer": sizes})
    raise ConfigurationError(f"{path}: _class_name: expected {FLUX} or {SD3}, got {found!r}")


@cache
def _shipped_models() -> tuple[Model, ...]:
    return tuple(read_description(shipped_file("models", f"{name}.yaml"), Model) for name in shipped_names("models"))
