"""What the weights of a directory in diffusers format need, read from the headers of its files alone."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError

NUMBERS = "numbers_of_weights.json"
"""Where a directory without weights tells how many there would be, by part."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20
_STEMS = ("diffusion_pytorch_model", "model")
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_NAME_IN_FILE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, slots=True)
class PartWeights:
    """The weights of one part of a pipeline.

    Attributes:
        name: `transformer`, `vae`, `text_encoder`, …
        numbers: how many floating-point numbers there are, by dtype as the file names it.
        other_bytes: of all that keeps its dtype.
    """

    name: str
    numbers: dict[str, int]
    other_bytes: int

    def loaded_bytes(self, dtype: str) -> int:
        """In memory, as `float32`, `bfloat16` or `float16`."""
        return sum(self.numbers.values()) * _ITEM_BYTES[_NAME_IN_FILE[dtype]] + self.other_bytes

    def is_mapped_as(self, dtype: str) -> bool:
        """Whether it is stored as it is computed with, so that ranks on the CPU share one copy of it."""
        return self.numbers.keys() <= {_NAME_IN_FILE[dtype]}


def read_weights(directory: Path) -> tuple[PartWeights, ...]:
    """Every part that has weights.

    Raises:
        ConfigurationError: a file cannot be read, or is not in safetensors format.
    """
    parts = []
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        files = _files(folder)
        if files:
            parts.append(_weigh(folder.name, files))
    return tuple(parts)


def made_weights(directory: Path) -> tuple[PartWeights, ...]:
    """Every part whose weights are to be made at random, as far as it is known: they are nobody else's copy.

    Raises:
        ConfigurationError: see `read_weights`, or a file that tells the numbers of weights tells something else.
    """
    file = directory / NUMBERS
    if not file.is_file():
        parts = read_weights(directory)
        return tuple(replace(part, numbers={"made": sum(part.numbers.values())}) for part in parts)
    try:
        told = {str(name): int(number) for name, number in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{file}: expected the numbers of weights by part: {error}") from error
    return tuple(PartWeights(name, {"made": number}, 0) for name, number in sorted(told.items()))


def _files(folder: Path) -> list[Path]:
    """Those that are loaded: variants of other dtypes may lie beside them."""
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigurationError(f"{index}: expected the index of weights in several files: {error}") from error
            return [folder / str(name) for name in sorted(names)]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    return []


def _weigh(name: str, files: list[Path]) -> PartWeights:
    numbers: dict[str, int] = {}
    other_bytes = 0
    for file in files:
        for dtype, count in _tensors(file):
            if dtype.startswith(("F", "BF")):
                numbers[dtype] = numbers.get(dtype, 0) + count
            else:
                other_bytes += count * _ITEM_BYTES.get(dtype, 1)
    return PartWeights(name, numbers, other_bytes)


def _tensors(file: Path) -> list[tuple[str, int]]:
    """Dtype and count of each tensor: the file starts with the length of a header, then comes the header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        return [(t["dtype"], math.prod(t["shape"])) for name, t in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{file}: expected weights in safetensors format: {error}") from error
