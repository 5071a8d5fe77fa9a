"""Which tensors the C++ norms and activations take, and on how many threads."""

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.library import cpu_library

# Elements below which one thread is done before a second one has woken up, some 20 us.
_WORTH_A_THREAD = 1 << 16


def runs_cpp(x: Tensor) -> bool:
    """Whether x's last dimension is normed, or activated, by a C++ kernel."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.stride(-1) == 1
        and x.numel() > 0
        and cpu_library() is not None
    )


def num_threads_for(num_elements: int) -> int:
    """How many threads so much work is worth."""
    return torch.get_num_threads() if num_elements >= _WORTH_A_THREAD else 1
