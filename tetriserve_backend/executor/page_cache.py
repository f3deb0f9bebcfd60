"""Weights in memory before the ranks ask for them."""

from pathlib import Path

_CHUNK_BYTES = 16 << 20


def read_ahead(directory: Path) -> None:
    """Read the weights of a model, so that ranks which stop serving to load it need not wait for the disk.

    Does as much as there is memory for: what does not fit is dropped by the system again.
    """
    buffer = bytearray(_CHUNK_BYTES)
    for path in sorted(directory.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as weights:
            while weights.readinto(buffer):
                pass
