"""Images' embeddings stand over their placeholders, whatever token those hold."""

import torch

from vlmflow_engine.layers.embedding import embed


def test_images_lie_over_tokens_and_nowhere_else():
    table = torch.arange(40.0).view(10, 4)
    images = [(1, torch.full((2, 4), -1.0)), (5, torch.full((1, 4), -2.0))]
    embeds = embed(torch.tensor([3, 0, 0, 9, 4, 0, 2]), table, images)
    assert embeds[:, 0].tolist() == [12.0, -1.0, -1.0, 36.0, 16.0, -2.0, 8.0]
    assert table.equal(torch.arange(40.0).view(10, 4))


def test_without_images_it_is_the_tables_rows():
    table = torch.randn(10, 4)
    assert embed(torch.tensor([7, 7, 1]), table).equal(table[[7, 7, 1]])
