"""FLUX.1's transformer, counted layer by layer.

Kernels and elementwise traffic are those of diffusers' own code, one kernel per operation: bytes per token and channel
and launches per block, which a test compares with the operations that this code performs.
"""

from tetriserve_profiling.analytic.layers import BYTES, Layer, attention_flop, linear_bytes, linear_flop
from tetriserve_profiling.analytic.model import FluxSizes
from tetriserve_profiling.analytic.passes import ForwardPass

_TIMESTEP_CHANNELS = 256
_MLP = 4
_DOUBLE_BYTES, _DOUBLE_LAUNCHES, _DOUBLE_PRODUCTS = 265, 96, 15
_SINGLE_BYTES, _SINGLE_LAUNCHES, _SINGLE_PRODUCTS = 255, 51, 7
_REST_LAUNCHES, _REST_PRODUCTS = 88, 10


def flux_layers(sizes: FluxSizes, shape: ForwardPass) -> list[Layer]:
    """All layers of one pass on one rank."""
    width = sizes.width
    both = shape.image_rows + shape.text_rows
    attention = attention_flop(shape.sequence, shape.sequence, width) * shape.rows / shape.degree
    # Query, key and value go out together and the result comes back.
    exchanged_bytes, collectives = (4 * both * width * BYTES, 2) if shape.degree > 1 else (0.0, 0)
    modulation, mlp = (width, 6 * width), ((width, _MLP * width), (_MLP * width, width))
    projections = ((width, width),) * 4
    stream = (*projections, *mlp)
    single_modulation = (width, 3 * width)
    single = (*projections[:3], (width, _MLP * width), (width + _MLP * width, width))
    return [
        *_embeddings(sizes, shape),
        Layer(
            "double block",
            count=sizes.num_layers,
            matmul_flop=linear_flop(both, *stream) + linear_flop(shape.rows, modulation, modulation),
            attention_flop=attention,
            weight_bytes=2 * linear_bytes(modulation, *stream),
            elementwise_bytes=_DOUBLE_BYTES * both * width,
            launches=_DOUBLE_LAUNCHES,
            products=_DOUBLE_PRODUCTS,
            exchanged_bytes=exchanged_bytes,
            collectives=collectives,
        ),
        Layer(
            "single block",
            count=sizes.num_single_layers,
            matmul_flop=linear_flop(both, *single) + linear_flop(shape.rows, single_modulation),
            attention_flop=attention,
            weight_bytes=linear_bytes(single_modulation, *single),
            elementwise_bytes=_SINGLE_BYTES * both * width,
            launches=_SINGLE_LAUNCHES,
            products=_SINGLE_PRODUCTS,
            exchanged_bytes=exchanged_bytes,
            collectives=collectives,
        ),
        _output(sizes, shape),
    ]


def _embeddings(sizes: FluxSizes, shape: ForwardPass) -> list[Layer]:
    width = sizes.width
    image, text = (sizes.in_channels, width), (sizes.joint_attention_dim, width)
    timestep = ((_TIMESTEP_CHANNELS, width), (width, width))
    conditions = timestep * (2 if sizes.guidance_embeds else 1) + ((sizes.pooled_projection_dim, width), (width, width))
    return [
        Layer(
            "embeddings",
            matmul_flop=linear_flop(shape.image_rows, image)
            + linear_flop(shape.text_rows, text)
            + linear_flop(shape.rows, *conditions),
            weight_bytes=linear_bytes(image, text, *conditions),
            launches=_REST_LAUNCHES,
            products=_REST_PRODUCTS,
        )
    ]


def _output(sizes: FluxSizes, shape: ForwardPass) -> Layer:
    modulation, projection = (sizes.width, 2 * sizes.width), (sizes.width, sizes.output_channels)
    return Layer(
        "output",
        matmul_flop=linear_flop(shape.rows, modulation) + linear_flop(shape.image_rows, projection),
        weight_bytes=linear_bytes(modulation, projection),
        exchanged_bytes=shape.image_rows * sizes.output_channels * BYTES * shape.degree,
        collectives=1 if shape.degree > 1 else 0,
    )
