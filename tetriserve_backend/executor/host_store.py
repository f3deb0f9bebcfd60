"""The parent's copies of what requests have become so far, so that a lost rank costs one segment at most."""

import numpy as np
import numpy.typing as npt

from tetriserve_backend.executor.wire import HostTensor

LATENT = "latent"
PIXELS = "pixels"


class HostStore:
    """Tensors by request; a new latent replaces the one before. Everything else is conditioning."""

    def __init__(self) -> None:
        self._tensors: dict[str, dict[str, HostTensor]] = {}

    def commit(self, tensors: tuple[HostTensor, ...]) -> None:
        """Keep the results of a segment that finished on all of its ranks."""
        for tensor in tensors:
            self._tensors.setdefault(tensor.header.request_id, {})[tensor.header.name] = tensor

    def conditioning(self, request_id: str) -> tuple[HostTensor, ...]:
        """What the text encoders made; empty if they have not yet."""
        held = self._tensors.get(request_id, {})
        return tuple(tensor for name, tensor in held.items() if name not in (LATENT, PIXELS))

    def latent(self, request_id: str) -> HostTensor | None:
        """The latest latent; its header tells how many steps are behind it."""
        return self._tensors.get(request_id, {}).get(LATENT)

    def take_image(self, request_id: str) -> npt.NDArray[np.uint8]:
        """The decoded pixels, shape (height, width, 3), once.

        Raises:
            KeyError: the request has not been decoded, or its image was taken before.
        """
        return as_pixels(self._tensors[request_id].pop(PIXELS))

    def forget(self, request_id: str) -> None:
        """Drop everything of a request."""
        self._tensors.pop(request_id, None)


def as_pixels(tensor: HostTensor) -> npt.NDArray[np.uint8]:
    """An image as an array, shape (height, width, 3), on the same memory."""
    return np.frombuffer(tensor.data, dtype=np.uint8).reshape(tensor.header.shape)
