"""From tensors on a rank's device to host frames and back."""

import torch

from tetriserve_backend.executor.wire import HostTensor, TensorHeader


def to_host(tensor: torch.Tensor, request_id: str, name: str, step: int = 0) -> HostTensor:
    """A copy of `tensor` in host memory; waits until it is complete."""
    if tensor.device.type == "cuda":
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        torch.cuda.synchronize(tensor.device)
        host = pinned
    else:
        # A copy, because the next segment may go on while the message is still on its way.
        host = tensor.detach().clone(memory_format=torch.contiguous_format)
    header = TensorHeader(request_id, name, dtype_name(tensor.dtype), tuple(tensor.shape), step)
    return HostTensor(header, host.view(-1).view(torch.uint8).numpy().data)


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
