"""What one layer computes and moves on one rank: the unit in which models are counted."""

from collections.abc import Sequence
from dataclasses import dataclass

BYTES = 2
"""Of one bf16 number."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of layer in a forward pass, as one rank runs it.

    Attributes:
        count: how many of them there are.
        matmul_flop, attention_flop, convolution_flop: of one layer; a multiply-add is two.
        weight_bytes: read once per pass.
        elementwise_bytes: read and written by kernels between the matrix products, if each operation of the model is
            a kernel of its own.
        launches: kernels, likewise.
        products: how many of the launches are linear layers or attention; what is between two of them can be one
            kernel after compilation.
        exchanged_bytes: what this rank brings into collectives.
        collectives: how many there are in one layer.
    """

    name: str
    count: int = 1
    matmul_flop: float = 0.0
    attention_flop: float = 0.0
    convolution_flop: float = 0.0
    weight_bytes: float = 0.0
    elementwise_bytes: float = 0.0
    launches: int = 0
    products: int = 0
    exchanged_bytes: float = 0.0
    collectives: int = 0

    @property
    def flop(self) -> float:
        """Of all layers of this kind."""
        return self.count * (self.matmul_flop + self.attention_flop + self.convolution_flop)


def total_flop(layers: Sequence[Layer]) -> float:
    """Operations of a whole pass on one rank."""
    return sum(layer.flop for layer in layers)


def total_weight_bytes(layers: Sequence[Layer]) -> float:
    """Bytes of all weights."""
    return sum(layer.count * layer.weight_bytes for layer in layers)


def linear_flop(rows: float, *shapes: tuple[int, int]) -> float:
    """Of `rows` tokens through linear layers of these (in, out) channels."""
    return 2.0 * rows * _parameters(shapes)


def linear_bytes(*shapes: tuple[int, int]) -> float:
    """Weights of linear layers of these (in, out) channels."""
    return float(BYTES * _parameters(shapes))


def attention_flop(queries: float, keys: float, width: int) -> float:
    """Of the two products of attention, over all heads."""
    return 4.0 * queries * keys * width


def _parameters(shapes: Sequence[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes)
