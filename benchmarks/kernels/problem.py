"""One kernel on one set of inputs: how it is called, what is right, what else computes the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

Answer = Tensor | tuple[Tensor, ...]


class Scale(Enum):
    """How large the inputs are."""

    BENCHMARK = "benchmark"  # as in real models, for timing on a GPU
    CHECK = "check"  # awkward and larger than an interpreter can do, for a GPU
    TOY = "toy"  # for a rehearsal in Triton's interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Calls over inputs that lie on a device already."""

    run: Callable[[], Any]  # our launcher, which is timed
    reference: Callable[[], Answer]  # the same in float64, in plain torch
    answer: Callable[[], Answer] | None = None  # what is compared; None: what `run` returns
    tolerance: float  # of the largest difference, over the largest number of the reference
    num_bytes: float = 0.0  # that have to be read or written
    flops: float = 0.0  # that have to be done
    peers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """Inputs by name; made when they are wanted, for some are gigabytes."""

    name: str
    make: Callable[[torch.device, int], Problem]  # from a device and a seed


def error_of(problem: Problem) -> float:
    """The largest difference from the reference, over the reference's largest number.

    Whole numbers must be equal. What a launcher allocates and does not write is NaN here. Raises
    AssertionError if shapes or dtypes differ, or if a NaN or infinity is where there should be
    none.
    """
    with _poisoned_memory():
        answers = _as_tuple((problem.answer or problem.run)())
    worst = 0.0
    for got, want in zip(answers, _as_tuple(problem.reference()), strict=True):
        assert got.shape == want.shape, f"{tuple(got.shape)} and not {tuple(want.shape)}"
        if not got.is_floating_point():
            assert torch.equal(got, want.to(got.dtype)), "whole numbers differ"
            continue
        if not want.numel():
            continue
        assert bool(torch.isfinite(got).all()), "a number is NaN or infinite"
        difference = (got.double() - want.double()).abs().max()
        largest = want.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        worst = max(worst, float(difference / largest))
    return worst


def tolerance_of(dtype: torch.dtype) -> float:
    """Of sums over some hundred products: a few roundings of float32, or of bfloat16."""
    return 2e-5 if dtype == torch.float32 else 1.5e-2


def random(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Normal numbers, of a generator of the same device."""
    return torch.randn(shape, device=device, generator=generator).to(dtype)


def generator_of(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


class _poisoned_memory:
    """While it lasts, torch fills what it allocates with NaN, or the largest whole number."""

    def __enter__(self) -> None:
        self._was = torch.are_deterministic_algorithms_enabled()
        self._fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        torch.utils.deterministic.fill_uninitialized_memory = self._fills  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(self._was)


def _as_tuple(answer: Answer) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)
