"""A kernel with one of the configurations we ship, as it is compiled ahead of time."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileCase:
    """What `tools.compile_kernels` compiles for an architecture that need not be there.

    Every module with kernels has a function `compile_cases() -> list[CompileCase]`: all that its
    launchers choose among, made by the same functions that choose.
    """

    name: str  # of the row in the table, such as "decode bf16 D128 page64"
    kernel: Any  # the @triton.jit function
    # Types of the arguments that are no constants, as Triton spells them: "*bf16", "i32", "fp32".
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    # Pointers and whole numbers known to be multiples of 16; pointers to whole tensors all are.
    aligned: tuple[str, ...] = ()
    allowed_spills: str = ""  # why registers may be spilled here; empty: they may not
    architectures: tuple[int, ...] = field(default=(80, 90, 100))  # compute capability times ten
