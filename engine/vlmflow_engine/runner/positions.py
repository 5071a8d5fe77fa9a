"""Where a token stands: its number, or with M-RoPE its place in time, height and width.

M-RoPE (Qwen2-VL, arXiv 2409.12191): a text token has the same number on all three axes. An image
begins at the next number; row and column are counted from there, and the text behind it goes on
one above the largest of them. So an image of 40 x 40 rows takes 1,600 tokens, but only 40 numbers.
"""

import numpy as np
from numpy.typing import NDArray

from vlmflow_engine.request import ImageInput
from vlmflow_engine.sequence import Sequence


def positions_of(
    sequence: Sequence, start: int, end: int, num_axes: int, usual_context: int | None = None
) -> NDArray[np.int64]:
    """Positions of tokens [start, end), as `layers.rotary` takes them.

    num_axes       3 with M-RoPE, where an image's layout is its grid of embedding rows: (frames,
                   rows, columns)
    usual_context  of `Decoder`
    """
    numbers = np.arange(start, end, dtype=np.int64)
    if usual_context is not None:
        return np.stack([numbers, np.full_like(numbers, sequence.num_tokens > usual_context)])
    if num_axes == 1:
        return numbers
    positions = np.repeat(numbers[None], num_axes, axis=0)
    unused = 0  # numbers that the images so far have not used up
    for image in sequence.request.images:
        if image.offset >= end:
            break
        own = slice(max(image.offset - start, 0), max(image.end - start, 0))
        grid = _grid(image)[:, max(start - image.offset, 0) : end - image.offset]
        positions[:, own] = grid + image.offset - unused
        numbers_used = max(image.layout)
        unused += image.num_tokens - numbers_used
        positions[:, own.stop :] = numbers[own.stop :] - unused
    return positions


def position_shift(sequence: Sequence) -> int:
    """With M-RoPE: the position of a token behind all images, less its place in the sequence."""
    return sum(max(image.layout) - image.num_tokens for image in sequence.request.images)


def _grid(image: ImageInput) -> NDArray[np.int64]:
    """[3, tokens]: frame, row and column of each of an image's tokens."""
    return np.indices(image.layout, dtype=np.int64).reshape(3, -1)
