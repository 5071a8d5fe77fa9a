"""An array of the host on its way to the device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of an array as a tensor of the device, of the same shape and dtype.

    On a GPU nobody waits: by way of `torch.tensor` the host would stand still until the device has
    done all that was queued before.
    """
    if device.type == "cpu":
        return torch.tensor(array)
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    # Pinned. torch's allocator gives it out again only when the copy is done.
    staged = torch.empty(array.shape, dtype=dtype, pin_memory=True)
    np.copyto(staged.numpy(), array)
    return staged.to(device, non_blocking=True)
