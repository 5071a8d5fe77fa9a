"""LLaVA-1.6's image features: those of the whole image, then those of its tiles put together."""

import torch
from torch import Tensor


def merge_tiles(
    tiles: Tensor, layout: tuple[int, ...], merge: str, newline: Tensor | None
) -> Tensor:
    """Return an image's embeddings [rows, hidden_size].

    tiles    [1 + tiles, features, hidden_size], the whole image first
    layout   of `inputs.image_processors.anyres`
    merge    "flat": tile by tile; "spatial": as rows of one picture; "spatial_unpad": also without
             its padding, and with a `newline` [hidden_size] behind each row
    """
    if merge == "flat":
        return tiles.flatten(0, 1)
    rows, columns, top, left = layout
    _, features, hidden_size = tiles.shape
    side = int(features**0.5)
    picture = (
        tiles[1:]
        .view(rows, columns, side, side, hidden_size)
        .permute(0, 2, 1, 3, 4)
        .reshape(rows * side, columns * side, hidden_size)
    )
    picture = picture[top : rows * side - top, left : columns * side - left]
    if merge == "spatial_unpad":
        assert newline is not None
        ends = newline.expand(len(picture), 1, hidden_size)
        picture = torch.cat((picture, ends), dim=1)
    return torch.cat((tiles[0], picture.flatten(0, 1)))
