"""Where the Triton kernels run: on CUDA, or in Triton's interpreter where a test asks for it.

Modules with Triton kernels import triton when they are imported, so they are imported late, by
those who have asked here first. An installation for CPUs needs no triton at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_interpreting: ContextVar[bool] = ContextVar("interpreting", default=False)


def runs_triton(x: Tensor) -> bool:
    """Whether what is computed from x is computed by a Triton kernel, and not in plain torch."""
    return (x.is_cuda and _has_triton()) or _interpreting.get()


@contextmanager
def interpreting() -> Iterator[None]:
    """Let tensors of the CPU go through the kernels too, in Triton's interpreter.

    TRITON_INTERPRET=1 must have been set before the kernels' modules were imported.
    """
    assert is_interpreted()
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


def is_interpreted() -> bool:
    """Whether kernels are made for the interpreter: Triton asks the same when it sees one."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def dot_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the operands of `tl.dot` are cast to: what they are, but float32 where interpreted.

    Triton's interpreter multiplies bfloat16 wrongly, and says nothing.
    """
    return torch.float32 if is_interpreted() else dtype


def architecture(x: Tensor) -> int:
    """Compute capability times ten of the GPU that x is on; 90, a Hopper's, where interpreted."""
    return _architecture(x.get_device()) if x.is_cuda else 90


@cache
def _architecture(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
