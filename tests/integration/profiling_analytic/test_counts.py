"""The analytic model's counts against torch's own, over the true-size models without their memory."""

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tetriserve_profiling.analytic.layers import Layer, total_flop, total_weight_bytes
from tetriserve_profiling.analytic.model import load_model
from tetriserve_profiling.analytic.passes import ForwardPass
from tetriserve_profiling.analytic.pipeline import transformer_layers
from tetriserve_profiling.analytic.text_encoder import text_encoder_layers
from tetriserve_profiling.analytic.vae import decoder_layers

BF16 = torch.bfloat16
SIDES = (256, 512, 1024, 2048)
WITHIN = 0.001


def on_meta(make):
    with torch.device("meta"):
        return make().to(BF16).eval()


def empty(*shape):
    return torch.empty(*shape, dtype=BF16, device="meta")


def make_flux(**changes):
    sizes = load_model("FLUX.1-dev").transformer.model_dump(exclude={"class_name", "out_channels"})
    return on_meta(lambda: FluxTransformer2DModel(**{**sizes, **changes}))


def run_flux(transformer, side, text_tokens=512):
    image_tokens = (side // 16) ** 2
    transformer(
        hidden_states=empty(1, image_tokens, 64), encoder_hidden_states=empty(1, text_tokens, 4096),
        pooled_projections=empty(1, 768), timestep=empty(1), guidance=empty(1),
        img_ids=empty(image_tokens, 3), txt_ids=empty(text_tokens, 3),
    )  # fmt: skip


def make_sd3(name="SD3-medium", **changes):
    sizes = load_model(name).transformer.model_dump(exclude={"class_name"})
    return on_meta(lambda: SD3Transformer2DModel(sample_size=128, pos_embed_max_size=192, **{**sizes, **changes}))


def run_sd3(transformer, side, text_tokens=333):
    transformer(
        hidden_states=empty(2, 16, side // 8, side // 8), encoder_hidden_states=empty(2, text_tokens, 4096),
        pooled_projections=empty(2, 2048), timestep=empty(2),
    )  # fmt: skip


def counted_flop(run):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    by_operation = {str(operation): flop for operation, flop in counter.get_flop_counts()["Global"].items()}
    # Attention takes part: without a GPU it is two batched products.
    assert any("bmm" in operation or "attention" in operation for operation in by_operation), by_operation
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "make", "run", "rows", "published_tflop"),
    [
        ("FLUX.1-dev", make_flux, run_flux, 1, (10.3, 21.5, 74.4, 418)),
        ("SD3-medium", make_sd3, run_sd3, 2, (None,) * 4),
    ],
)
def test_a_step_has_the_flop_that_torch_counts_in_the_true_size_transformer(name, make, run, rows, published_tflop):
    model, transformer = load_model(name), make()
    for side, tflop in zip(SIDES, published_tflop, strict=True):
        shape = ForwardPass((side // 16) ** 2, model.text_tokens, rows)
        flop = total_flop(transformer_layers(model, shape))
        assert flop == pytest.approx(counted_flop(lambda side=side: run(transformer, side)), rel=WITHIN)
        if tflop is not None:
            assert flop / 1e12 == pytest.approx(tflop, rel=0.01)
    weights = sum(parameter.numel() for parameter in transformer.parameters())
    assert total_weight_bytes(transformer_layers(model, ForwardPass(1, 1))) / 2 == pytest.approx(weights, rel=WITHIN)


@pytest.mark.parametrize("changes", [{"qk_norm": "rms_norm"}, {"dual_attention_layers": tuple(range(13))}])
def test_the_variants_of_sd3_have_the_flop_that_torch_counts(changes):
    medium = load_model("SD3-medium")
    model = medium.model_copy(update={"transformer": medium.transformer.model_copy(update=changes)})
    transformer = make_sd3(**changes)
    flop = total_flop(transformer_layers(model, ForwardPass(4096, 333, 2)))
    assert flop == pytest.approx(counted_flop(lambda: run_sd3(transformer, 1024)), rel=WITHIN)


def test_the_decoder_has_the_flop_that_torch_counts():
    vae = load_model("FLUX.1-dev").vae
    levels = len(vae.block_out_channels)
    decoder = on_meta(
        lambda: AutoencoderKL(
            latent_channels=vae.latent_channels, block_out_channels=vae.block_out_channels,
            layers_per_block=vae.layers_per_block, up_block_types=("UpDecoderBlock2D",) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels, use_quant_conv=False, use_post_quant_conv=False,
        )
    )  # fmt: skip
    for height, width in ((512, 512), (1024, 768)):
        counted = counted_flop(lambda h=height, w=width: decoder.decode(empty(1, 16, h // 8, w // 8)))
        assert total_flop(decoder_layers(vae, height, width)) == pytest.approx(counted, rel=WITHIN)


def test_the_text_encoders_have_the_flop_that_torch_counts():
    for sizes in load_model("SD3-medium").text_encoders:
        heads = sizes.hidden_size // 64
        if sizes.kind == "t5":
            config = T5Config(
                d_model=sizes.hidden_size, d_ff=sizes.intermediate_size, num_layers=sizes.num_layers, num_heads=heads,
                d_kv=64, vocab_size=sizes.vocabulary, feed_forward_proj="gated-gelu", use_cache=False,
            )  # fmt: skip
            encoder = on_meta(lambda config=config: T5EncoderModel(config))
        else:
            config = CLIPTextConfig(
                hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
                num_hidden_layers=sizes.num_layers, num_attention_heads=heads, projection_dim=sizes.hidden_size,
            )  # fmt: skip
            encoder = on_meta(lambda config=config: CLIPTextModel(config))
        ids = torch.zeros(1, sizes.tokens, dtype=torch.long, device="meta")
        counted = counted_flop(lambda encoder=encoder, ids=ids: encoder(input_ids=ids))
        assert total_flop(text_encoder_layers(sizes, 1)) == pytest.approx(counted, rel=WITHIN)


class OneKernelAttention(TorchFunctionMode):
    """Attention as a GPU has it; without one torch would take it apart."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.calls += 1
            return torch.empty_like(args[0] if args else kwargs["query"])
        return function(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Counts operations that are no mere views, and the bytes that those between the products touch."""

    PRODUCTS = ("addmm", "mm", "bmm", "convolution")
    NOTHING = ("empty", "empty_like", "new_empty")

    def __init__(self):
        super().__init__()
        self.launches, self.elementwise_bytes = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        is_view = any(
            value.alias_info is not None and not value.alias_info.is_write for value in function._schema.returns
        )
        if not is_view and name not in self.NOTHING:
            self.launches[name] += 1
            if name not in self.PRODUCTS:
                tensors = [leaf for leaf in tree_flatten((args, kwargs, result))[0] if isinstance(leaf, torch.Tensor)]
                self.elementwise_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def counted_kernels(run):
    with torch.no_grad(), OneKernelAttention() as attention, Kernels() as kernels:
        run()
    return kernels.launches.total() + attention.calls, kernels.elementwise_bytes


def modelled_kernels(layers: list[Layer]):
    launches = sum(layer.count * layer.launches for layer in layers)
    return launches, sum(layer.count * layer.elementwise_bytes for layer in layers)


@pytest.mark.parametrize(
    ("name", "make", "run", "rows", "depths"),
    [
        ("FLUX.1-dev", make_flux, run_flux, 1, {"num_layers": 5, "num_single_layers": 9}),
        ("SD3-medium", make_sd3, run_sd3, 2, {"num_layers": 12}),
        ("SD3.5-large", lambda **to: make_sd3("SD3.5-large", **to), run_sd3, 2, {"num_layers": 12}),
    ],
)
def test_kernels_and_what_they_move_are_those_of_diffusers_own_code(name, make, run, rows, depths):
    model = load_model(name)
    model = model.model_copy(update={"transformer": model.transformer.model_copy(update=depths)})
    transformer = make(**depths)
    for side in (256, 1024):
        launches, moved = counted_kernels(lambda side=side: run(transformer, side))
        modelled = modelled_kernels(transformer_layers(model, ForwardPass((side // 16) ** 2, model.text_tokens, rows)))
        assert modelled[0] == pytest.approx(launches, rel=0.03)
        assert modelled[1] == pytest.approx(moved, rel=0.08)
