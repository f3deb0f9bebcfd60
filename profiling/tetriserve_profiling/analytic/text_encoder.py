"""CLIP and T5 text encoders, counted layer by layer, as transformers' own code runs them."""

from tetriserve_profiling.analytic.layers import BYTES, Layer, attention_flop, linear_bytes, linear_flop
from tetriserve_profiling.analytic.model import TextEncoder

_T5_BYTES, _T5_LAUNCHES, _T5_PRODUCTS = 229, 44, 8
# T5's attention adds a bias to the scores of each of its heads, in kernels of their own.
_T5_BIAS_BYTES = 256
_CLIP_BYTES, _CLIP_LAUNCHES, _CLIP_PRODUCTS = 80, 15, 7
_REST_LAUNCHES = 11


def text_encoder_layers(encoder: TextEncoder, prompts: int) -> list[Layer]:
    """All layers of one pass over `prompts` prompts on one rank."""
    width, rows = encoder.hidden_size, prompts * encoder.tokens
    # T5's MLP is gated: two projections up and one down.
    is_t5 = encoder.kind == "t5"
    mlp = ((width, encoder.intermediate_size),) * (2 if is_t5 else 1) + ((encoder.intermediate_size, width),)
    shapes = ((width, width),) * 4 + mlp
    elementwise = float((_T5_BYTES if is_t5 else _CLIP_BYTES) * rows * width)
    if is_t5:
        elementwise += _T5_BIAS_BYTES * rows * encoder.tokens
    return [
        Layer(
            "token embeddings",
            weight_bytes=0.0,
            elementwise_bytes=2 * rows * width * BYTES,
            launches=_REST_LAUNCHES,
        ),
        Layer(
            f"{encoder.kind} layer",
            count=encoder.num_layers,
            matmul_flop=linear_flop(rows, *shapes),
            attention_flop=prompts * attention_flop(encoder.tokens, encoder.tokens, width),
            weight_bytes=linear_bytes(*shapes),
            elementwise_bytes=elementwise,
            launches=_T5_LAUNCHES if is_t5 else _CLIP_LAUNCHES,
            products=_T5_PRODUCTS if is_t5 else _CLIP_PRODUCTS,
        ),
    ]
