"""Draws by the kernel, against the largest sum of a sorted row."""

import torch

from vlmflow_engine.kernels.draw_tokens import draw_tokens, draw_tokens_reference
from vlmflow_engine.kernels.gumbel_noise import gumbel_noise_reference
from vlmflow_engine.kernels.kept_tokens import kept_tokens, kept_tokens_reference
from vlmflow_engine.kernels.sampling_table import SamplingTable, allocate_sampling_table


def make_table(num_rows: int, vocab_size: int) -> SamplingTable:
    table = allocate_sampling_table(num_rows, vocab_size, "cpu")
    table.seed.copy_(torch.arange(num_rows) * 2**58 - 5)
    table.temperature.copy_(torch.tensor([1.0, 0.5, 2.0]).repeat(num_rows)[:num_rows])
    table.top_k.copy_(torch.tensor([0, 0, 3, 1]).repeat(num_rows)[:num_rows])
    table.top_p.copy_(torch.tensor([1.0, 0.9]).repeat(num_rows)[:num_rows])
    table.min_p.copy_(torch.tensor([0.0, 0.0, 0.0, 0.1, 1.0]).repeat(num_rows)[:num_rows])
    return table


def test_tokens_are_the_largest_sums_of_kept_tokens():
    vocab_size = 2500  # more than a tile
    table = make_table(12, vocab_size)
    rows = torch.tensor([3, 0, -1, 11, 5, 8, 7, 6, 4, 1], dtype=torch.int32)
    positions = torch.arange(10, dtype=torch.int32) * 3
    scores = torch.randn(10, vocab_size, generator=torch.Generator().manual_seed(0)) * 2
    scores[1] = -torch.inf
    scores[3, 9] = torch.nan
    options = {"temperature": table.temperature, "top_k": table.top_k, "top_p": table.top_p}
    kept = kept_tokens(scores, rows, **options)
    drawn = draw_tokens(scores, rows, positions, kept, table)
    noise = gumbel_noise_reference(table.seed[rows.clamp(min=0)], positions, vocab_size)
    is_kept = kept_tokens_reference(scores, rows, **options)
    assert torch.equal(drawn, draw_tokens_reference(scores, rows, noise, is_kept, table))
    assert [row for row, token in enumerate(drawn.tolist()) if token < 0] == [1, 2, 3]


def test_drawn_tokens_are_noted_where_a_penalty_asks():
    table = allocate_sampling_table(3, 70, "cpu")  # greedy
    table.penalty[:2] = 2.0
    table.seen[0, 2] = 1
    scores = torch.zeros(4, 70)
    scores[0, 69] = scores[1, 31] = scores[2, 5] = 1.0
    scores[3] = -torch.inf
    rows = torch.tensor([0, 1, 2, -1], dtype=torch.int32)
    kept = kept_tokens(
        scores, rows, temperature=table.temperature, top_k=table.top_k, top_p=table.top_p
    )
    assert draw_tokens(scores, rows, rows, kept, table).tolist() == [69, 31, 5, -1]
    assert table.seen.tolist() == [[0, 0, 33], [-(2**31), 0, 0], [0, 0, 0]]
