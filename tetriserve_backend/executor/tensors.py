"""From tensors on a rank's device to host frames and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from tetriserve_backend.executor.wire import HostTensor, TensorHeader


@dataclass(frozen=True, slots=True)
class Product:
    """A tensor that a segment made for one request; `step` counts the denoising steps behind a latent."""

    request_id: str
    name: str
    tensor: torch.Tensor
    step: int = 0


class HostCopier:
    """Copies tensors of one device to host memory: on CUDA to pinned pages, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, products: Iterable[Product]) -> tuple[HostTensor, ...]:
        """Complete copies, in order; waits for the work that makes the tensors and for nothing called after it."""
        if self._stream is None:
            # A copy here too, because the next segment may go on while the message is still on its way.
            return tuple(_frame(p, p.tensor.detach().clone(memory_format=torch.contiguous_format)) for p in products)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            copies = [(product, _to_pinned(product.tensor)) for product in products]
        self._stream.synchronize()
        return tuple(_frame(product, host) for product, host in copies)


def from_host(tensor: HostTensor, device: torch.device) -> torch.Tensor:
    """The tensor of a received frame, on `device`.

    Raises:
        ValueError: the frame is too short or too long for its header.
    """
    header = tensor.header
    dtype = getattr(torch, header.dtype)
    # One copy out of the message's buffer: it is read-only and ends with the message.
    raw = torch.frombuffer(bytearray(tensor.data), dtype=dtype)
    return raw.reshape(header.shape).to(device)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    return pinned


def _frame(product: Product, host: torch.Tensor) -> HostTensor:
    header = TensorHeader(product.request_id, product.name, dtype_name(host.dtype), tuple(host.shape), product.step)
    return HostTensor(header, host.view(-1).view(torch.uint8).numpy().data)
