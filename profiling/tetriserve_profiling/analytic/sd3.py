"""The transformer of Stable Diffusion 3 and 3.5, counted layer by layer.

Kernels and elementwise traffic are those of diffusers' own code, as in `flux.py`.
"""

from tetriserve_profiling.analytic.layers import BYTES, Layer, attention_flop, linear_bytes, linear_flop
from tetriserve_profiling.analytic.model import Sd3Sizes
from tetriserve_profiling.analytic.passes import ForwardPass

_TIMESTEP_CHANNELS = 256
_MLP = 4
_BLOCK_BYTES, _NORM_BYTES, _SECOND_ATTENTION_BYTES = 96, 69, 95
_BLOCK_LAUNCHES, _NORM_LAUNCHES, _SECOND_ATTENTION_LAUNCHES = 56, 32, 28
_BLOCK_PRODUCTS, _SECOND_ATTENTION_PRODUCTS = 15, 5
_REST_LAUNCHES, _REST_PRODUCTS = 18, 9


def sd3_layers(sizes: Sd3Sizes, shape: ForwardPass) -> list[Layer]:
    """All layers of one pass on one rank."""
    width, patch = sizes.width, sizes.patch_size**2
    image, text = (sizes.in_channels * patch, width), (sizes.joint_attention_dim, sizes.caption_projection_dim)
    conditions = (
        (_TIMESTEP_CHANNELS, width), (width, width), (sizes.pooled_projection_dim, width), (width, width)
    )  # fmt: skip
    last = sizes.num_layers - 1
    plain = [index for index in range(last) if index not in sizes.dual_attention_layers]
    return [
        Layer(
            "embeddings",
            matmul_flop=linear_flop(shape.image_rows, image)
            + linear_flop(shape.text_rows, text)
            + linear_flop(shape.rows, *conditions),
            weight_bytes=linear_bytes(image, text, *conditions),
            launches=_REST_LAUNCHES,
            products=_REST_PRODUCTS,
        ),
        _block(sizes, shape, "block", len(plain), has_second_attention=False),
        _block(sizes, shape, "block with two attentions", last - len(plain), has_second_attention=True),
        _block(sizes, shape, "last block", 1, has_second_attention=last in sizes.dual_attention_layers, is_last=True),
        _output(sizes, shape),
    ]


def _block(
    sizes: Sd3Sizes, shape: ForwardPass, name: str, count: int, *, has_second_attention: bool, is_last: bool = False
) -> Layer:
    width, both = sizes.width, shape.image_rows + shape.text_rows
    mlp, projections = ((width, _MLP * width), (_MLP * width, width)), ((width, width),) * 4
    image = (*projections, *mlp, *(projections if has_second_attention else ()))
    # The last block has no use for its text.
    text = projections[:3] if is_last else (*projections, *mlp)
    modulations = ((width, (9 if has_second_attention else 6) * width), (width, (2 if is_last else 6) * width))
    attention = attention_flop(shape.sequence, shape.sequence, width)
    elementwise = (_BLOCK_BYTES + (_NORM_BYTES if sizes.qk_norm else 0)) * both
    launches = _BLOCK_LAUNCHES + (_NORM_LAUNCHES if sizes.qk_norm else 0)
    exchanged = both
    if has_second_attention:
        attention += attention_flop(shape.image_tokens, shape.image_tokens, width)
        elementwise += _SECOND_ATTENTION_BYTES * shape.image_rows
        exchanged += shape.image_rows
    return Layer(
        name,
        count=count,
        matmul_flop=linear_flop(shape.image_rows, *image)
        + linear_flop(shape.text_rows, *text)
        + linear_flop(shape.rows, *modulations),
        attention_flop=attention * shape.rows / shape.degree,
        weight_bytes=linear_bytes(*image, *text, *modulations),
        elementwise_bytes=elementwise * width,
        launches=launches + (_SECOND_ATTENTION_LAUNCHES if has_second_attention else 0),
        products=_BLOCK_PRODUCTS + (_SECOND_ATTENTION_PRODUCTS if has_second_attention else 0),
        exchanged_bytes=4 * exchanged * width * BYTES if shape.degree > 1 else 0.0,
        collectives=(4 if has_second_attention else 2) if shape.degree > 1 else 0,
    )


def _output(sizes: Sd3Sizes, shape: ForwardPass) -> Layer:
    channels = sizes.output_channels * sizes.patch_size**2
    modulation, projection = (sizes.width, 2 * sizes.width), (sizes.width, channels)
    return Layer(
        "output",
        matmul_flop=linear_flop(shape.rows, modulation) + linear_flop(shape.image_rows, projection),
        weight_bytes=linear_bytes(modulation, projection),
        exchanged_bytes=shape.image_rows * channels * BYTES * shape.degree,
        collectives=1 if shape.degree > 1 else 0,
    )
