"""A step's embeddings: of tokens, and over placeholders those of images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.kernels.dispatch import runs_triton
from vlmflow_engine.layers.host_array import to_device

# First row of a step, and the embeddings [num_rows, hidden_size] that go there and below.
ImageRows = tuple[int, Tensor]


def embed(token_ids: Tensor, table: Tensor, images: Sequence[ImageRows] = ()) -> Tensor:
    """[num_tokens] -> [num_tokens, hidden_size].

    table  [vocab_size, hidden_size]
    """
    if images and runs_triton(table):
        # Late: only who computes on a GPU needs triton.
        from vlmflow_engine.kernels.embedding_rows import embedding_rows, image_addresses

        addresses = image_addresses(len(token_ids), images, table)
        return embedding_rows(token_ids, table, to_device(addresses.numpy(), table.device))
    return put_rows(F.embedding(token_ids, table), images)


def put_rows(embeds: Tensor, images: Sequence[ImageRows]) -> Tensor:
    """Put images' embeddings over a step's, in place; return them."""
    for row, source in images:
        embeds[row : row + len(source)] = source
    return embeds
