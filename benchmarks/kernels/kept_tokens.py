"""Which tokens temperature, top-k and top-p leave, beside torch's sort of the vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.kernels.problem import KernelCase, Problem, Scale, generator_of


class _Options(NamedTuple):
    temperature: float
    top_k: int  # 0: all
    top_p: float


_MIXED = (
    _Options(1.0, 50, 1.0),
    _Options(0.7, 0, 0.9),
    _Options(1.3, 40, 0.8),
    _Options(1.0, 1, 1.0),
    _Options(1.0, 0, 1.0),
)


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [
            _case("top-k 50, 64 rows", 64, 152_064, _MIXED[:1]),
            _case("top-p 0.9, 64 rows", 64, 152_064, _MIXED[1:2]),
            _case("top-k 40 and top-p 0.8, 256 rows", 256, 152_064, _MIXED[2:3]),
        ]
    if scale is Scale.TOY:
        return [_case("toy", 3, 300, _MIXED[1:4])]
    return [
        _case(f"mixed, {rows} rows of {vocab_size}", rows, vocab_size, _MIXED)
        for rows, vocab_size in ((1, 65), (7, 32_064), (131, 152_064))
    ]


def _case(name: str, num_rows: int, vocab_size: int, options: Sequence[_Options]) -> KernelCase:
    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.kept_tokens import kept_tokens

        generator = generator_of(device, seed)
        # As peaked as a model's: of flat ones top-p keeps so many that a last digit decides.
        logits = 6 * torch.randn((num_rows, vocab_size), device=device, generator=generator)
        rows = torch.arange(num_rows, dtype=torch.int32, device=device)
        drawn = [options[index % len(options)] for index in range(num_rows)]
        # Columns of one table: their strides are the same.
        table = torch.empty((num_rows, 3), dtype=torch.float32, device=device)
        table[:, 0] = torch.tensor([row.temperature for row in drawn])
        table[:, 1].view(torch.int32).copy_(torch.tensor([row.top_k for row in drawn]))
        table[:, 2] = torch.tensor([row.top_p for row in drawn])
        columns = {
            "temperature": table[:, 0],
            "top_k": table[:, 1].view(torch.int32),
            "top_p": table[:, 2],
        }

        def sort() -> Tensor:
            values, order = logits.sort(dim=-1, descending=True)
            return order + values.softmax(dim=-1).cumsum(dim=-1)

        return Problem(
            run=lambda: kept_tokens(logits, rows, **columns),
            reference=lambda: _last_ids(logits, drawn),
            answer=lambda: kept_tokens(logits, rows, **columns).ids,
            tolerance=0.0,
            num_bytes=float(logits.nbytes),
            peers={"torch's sort": sort},
        )

    return KernelCase(name=name, make=make)


def _last_ids(logits: Tensor, options: Sequence[_Options]) -> Tensor:
    """The id of the last kept token of each row, in the order of their logits."""
    found = []
    for row, (temperature, top_k, top_p) in zip(logits, options, strict=True):
        values, order = row.double().sort(descending=True, stable=True)
        values = values[: top_k or None]
        shares = torch.softmax(values / temperature, dim=-1)
        # At 1 a sum's last digit must leave nobody out.
        kept = shares.cumsum(dim=-1) - shares <= (top_p if top_p < 1 else 2)
        found.append(order[int(kept.sum()) - 1])
    return torch.stack(found)
