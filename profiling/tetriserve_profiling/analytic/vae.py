"""The decoder of a convolutional VAE, counted layer by layer, as diffusers' own code runs it."""

from itertools import pairwise

from tetriserve_profiling.analytic.layers import BYTES, Layer, attention_flop, linear_bytes, linear_flop
from tetriserve_profiling.analytic.model import Vae

_KERNEL = 9
_RGB = 3
# Per number: normalisation and activation read and write it once each; a residual block adds and divides once.
_NORM_BYTES, _RESIDUAL_BYTES = 8, 10
_RESNET_LAUNCHES, _UPSAMPLE_LAUNCHES, _ATTENTION_LAUNCHES, _END_LAUNCHES = 8, 2, 12, 4


def decoder_layers(vae: Vae, height: int, width: int) -> list[Layer]:
    """All layers of decoding one image of `height` × `width` pixels."""
    levels = list(reversed(vae.block_out_channels))
    scale = 2 ** (len(levels) - 1)
    deepest, pixels = levels[0], height * width // scale**2
    layers = [
        _convolution("input", pixels, vae.latent_channels, deepest, launches=1),
        _resnet(pixels, deepest, deepest),
        _attention(pixels, deepest),
        _resnet(pixels, deepest, deepest),
    ]
    for index, (before, channels) in enumerate(pairwise([deepest, *levels])):
        layers.append(_resnet(pixels, before, channels))
        layers += [_resnet(pixels, channels, channels)] * vae.layers_per_block
        if index < len(levels) - 1:
            pixels *= 4
            layers.append(_convolution("upsample", pixels, channels, channels, launches=_UPSAMPLE_LAUNCHES))
    return [*layers, _convolution("output", pixels, levels[-1], _RGB, launches=_END_LAUNCHES)]


def _resnet(pixels: int, before: int, channels: int) -> Layer:
    shortcut = before * channels if before != channels else 0
    parameters = _KERNEL * (before * channels + channels * channels) + shortcut
    return Layer(
        "residual block",
        convolution_flop=2.0 * pixels * parameters,
        weight_bytes=BYTES * parameters,
        elementwise_bytes=pixels * (_NORM_BYTES * (before + channels) + _RESIDUAL_BYTES * channels),
        launches=_RESNET_LAUNCHES,
    )


def _attention(pixels: int, channels: int) -> Layer:
    projections = ((channels, channels),) * 4
    return Layer(
        "attention",
        matmul_flop=linear_flop(pixels, *projections),
        attention_flop=attention_flop(pixels, pixels, channels),
        weight_bytes=linear_bytes(*projections),
        elementwise_bytes=pixels * channels * (_NORM_BYTES + _RESIDUAL_BYTES),
        launches=_ATTENTION_LAUNCHES,
    )


def _convolution(name: str, pixels: int, before: int, channels: int, launches: int) -> Layer:
    parameters = _KERNEL * before * channels
    return Layer(
        name,
        convolution_flop=2.0 * pixels * parameters,
        weight_bytes=BYTES * parameters,
        elementwise_bytes=pixels * before * _NORM_BYTES,
        launches=launches,
    )
