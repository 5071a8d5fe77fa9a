"""A step's embeddings come from the token table and from images, wherever these lie."""

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.embedding_rows import (
    embedding_rows,
    embedding_rows_reference,
    image_addresses,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCAB_SIZE = 50


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tokens(num_tokens: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(1))


def check(token_ids: Tensor, table: Tensor, spans: list[tuple[int, Tensor]]) -> None:
    addresses = image_addresses(len(token_ids), spans, table)
    out = embedding_rows(token_ids, table, addresses)
    assert out.dtype == table.dtype
    assert torch.equal(out, embedding_rows_reference(token_ids, table, spans))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 17, 1024, 1500])
def test_rows_come_from_the_table_and_from_images(size, dtype):
    table = draw(VOCAB_SIZE, size, dtype=dtype)
    first, second = draw(7, size, seed=2, dtype=dtype), draw(3, size, seed=3, dtype=dtype)
    check(tokens(17), table, [(1, first), (8, second), (16, first[6:])])


def test_a_part_of_an_image_may_be_a_steps():
    table, image = draw(VOCAB_SIZE, 32), draw(100, 32, seed=2)
    check(tokens(20), table, [(0, image[80:])])
    check(tokens(20), table, [(5, image[13:20]), (12, image[:1])])


@pytest.mark.parametrize("num_tokens", [0, 1, 131])
def test_without_images_it_is_the_table(num_tokens):
    table, token_ids = draw(VOCAB_SIZE, 24), tokens(num_tokens)
    assert torch.equal(embedding_rows(token_ids, table, None), table[token_ids])
    check(token_ids, table, [])


def test_a_placeholders_token_may_be_none_of_the_tables():
    table, image = draw(VOCAB_SIZE, 16), draw(2, 16, seed=2)
    token_ids = torch.tensor([3, 1 << 40, -(1 << 40), 4])
    out = embedding_rows(token_ids, table, image_addresses(4, [(1, image)], table))
    assert torch.equal(out, torch.cat([table[3:4], image, table[4:5]]))


def test_embeddings_that_do_not_fit_the_table_or_the_step_are_no_addresses():
    table = draw(VOCAB_SIZE, 16)
    for first, rows in (
        (0, draw(2, 17)),
        (0, draw(2, 16).half()),
        (0, draw(16, 2).T),
        (3, draw(2, 16)),
        (-1, draw(2, 16)),
    ):
        with pytest.raises(AssertionError):
            image_addresses(4, [(first, rows)], table)
