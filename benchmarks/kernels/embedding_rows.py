"""A step's embeddings, of tokens and of images, beside torch's gather and copies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.problem import KernelCase, Problem, Scale, generator_of, random


def cases(scale: Scale) -> list[KernelCase]:
    if scale is Scale.BENCHMARK:
        return [
            _case(8192, 152_064, 3584, [(20, 1369), (1500, 1369), (4000, 1369)]),
            _case(256, 152_064, 3584, []),
        ]
    if scale is Scale.TOY:
        return [_case(9, 20, 48, [(2, 3)])]
    return [
        _case(1, 640, 64, []),
        _case(131, 640, 96, [(0, 17), (30, 1), (130, 1)]),
        _case(5000, 32_064, 4096, [(10, 2880)]),
    ]


def _case(num_tokens: int, vocab_size: int, size: int, images: list[tuple[int, int]]) -> KernelCase:
    """images  (first row, rows) of each"""

    def make(device: torch.device, seed: int) -> Problem:
        from vlmflow_engine.kernels.embedding_rows import embedding_rows, image_addresses

        generator, dtype = generator_of(device, seed), torch.bfloat16
        table = random((vocab_size, size), dtype, device, generator)
        token_ids = torch.randint(vocab_size, (num_tokens,), device=device, generator=generator)
        spans = [(row, random((rows, size), dtype, device, generator)) for row, rows in images]
        addresses = None
        if spans:
            addresses = image_addresses(num_tokens, spans, table).to(device)

        def gathered(table: Tensor) -> Tensor:
            out = F.embedding(token_ids, table)
            for row, embeddings in spans:
                out[row : row + len(embeddings)] = embeddings
            return out

        return Problem(
            run=lambda: embedding_rows(token_ids, table, addresses),
            reference=lambda: gathered(table.double()),
            tolerance=0.0,
            num_bytes=2.0 * num_tokens * size * table.element_size(),
            peers={"torch": lambda: gathered(table)},
        )

    return KernelCase(name=f"{num_tokens} x {size}, {len(images)} images", make=make)
