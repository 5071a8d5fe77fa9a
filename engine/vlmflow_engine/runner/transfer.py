"""A step's small arrays on their way to the device, and its results on their way home."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes; what Triton's vector loads like


def upload(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors of the device, views of one buffer.

    On a GPU the copy is queued on the current stream. The buffer on the host is pinned, and torch's
    allocator gives it out again only when the copy is done.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    offsets, size = [], 0
    for array in arrays:
        offsets.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    staged = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    view = staged.numpy()
    for offset, array in zip(offsets, arrays, strict=True):
        view[offset : offset + array.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
    sent = staged.to(device, non_blocking=True)
    return [
        sent[offset : offset + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
        for offset, array in zip(offsets, arrays, strict=True)
    ]


_DTYPES = {
    "bool": torch.bool,
    "float32": torch.float32,
    "int32": torch.int32,
    "int64": torch.int64,
}


def upload_list(values: Sequence[int], device: torch.device) -> Tensor:
    """Return whole numbers as an int64 tensor of the device."""
    return upload([np.array(values, dtype=np.int64)], device)[0]


def upload_into(tensor: Tensor, values: Sequence[int]) -> None:
    """Fill an int64 tensor of the device, which stays where it is. Nobody waits for the copy."""
    host = torch.tensor(values, dtype=torch.int64, pin_memory=tensor.is_cuda)
    tensor.copy_(host, non_blocking=True)


class Download:
    """A tensor on its way to the host. Who asks for it waits for what was queued before it, and not
    for the step that was launched since."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> Tensor:
        """Return it, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
