"""Which of three computes attention over the paged cache; all have one signature, layers.attend."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum

import torch

from vlmflow_engine.kernels.cpu.attention import can_attend
from vlmflow_engine.kernels.cpu.library import cpu_library
from vlmflow_engine.kernels.dispatch import runs_triton

_only_torch: ContextVar[bool] = ContextVar("only_torch", default=False)


class AttentionBackend(Enum):
    """By the word that a log and a report have for it."""

    TRITON = "triton"  # on a GPU
    CPP = "c++"  # on a CPU, see kernels/cpu
    TORCH = "torch"  # anywhere: the reference, and what runs where nothing faster does

    @property
    def is_paged(self) -> bool:
        """Whether it takes a step as `PagedMetadata`, and not as `AttentionMetadata`."""
        return self is not AttentionBackend.TORCH

    @property
    def description(self) -> str:
        """Its name, of the CPU's with the instruction set."""
        library = cpu_library() if self is AttentionBackend.CPP else None
        return self.value if library is None else f"{self.value} {library.level}"


def choose_backend(
    device: torch.device, dtype: torch.dtype, head_dim: int, quant_policy: int
) -> AttentionBackend:
    """Return the fastest one that there is for a model and its cache."""
    if runs_triton(torch.empty(0, device=device)):
        return AttentionBackend.TRITON
    has_kernel = device.type == "cpu" and can_attend(dtype, head_dim, quant_policy)
    if has_kernel and not _only_torch.get() and cpu_library() is not None:
        return AttentionBackend.CPP
    return AttentionBackend.TORCH


@contextmanager
def without_cpp() -> Iterator[None]:
    """Let engines that are made meanwhile do without the C++ kernels: to compare with them."""
    token = _only_torch.set(True)
    try:
        yield
    finally:
        _only_torch.reset(token)
