"""Each image's token becomes as many tokens as the model looks at the image with."""

from collections.abc import Iterator, Sequence

import numpy as np

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.image_processors.base import ProcessedImage
from vlmflow_engine.request import ImageInput

# Images that were processed together, by the name of their content.
LoadedImages = tuple[bytes, ProcessedImage]


def expand_images(
    token_ids: Sequence[int],
    loaded: Sequence[LoadedImages],
    *,
    token_id: int,
    placeholder_id: int | None = None,
    around: tuple[list[int], list[int]] = ([], []),
) -> tuple[list[int], list[ImageInput]]:
    """Return the tokens of a prompt with its images in it, and where each of them is.

    token_id        stands for an image
    placeholder_id  what an embedding stands for, if that is another one
    around          tokens before and behind each image, if the processor does not write them

    Images that were processed together are one: it begins with the first of them and ends with the
    last, with whatever text is between. Raises InvalidRequestError.
    """
    num_tokens = token_ids.count(token_id)
    num_images = sum(len(image.expansions) or 1 for _, image in loaded)
    if num_tokens != num_images:
        raise InvalidRequestError(
            f"the chat template placed {num_tokens} image tokens for {num_images} images"
        )
    expanded: list[int] = []
    spans: list[tuple[int, int]] = []  # of each image
    expansions = _expansions(loaded, token_id)
    for token in token_ids:
        if token != token_id:
            expanded.append(token)
            continue
        expanded += around[0]
        start = len(expanded)
        expanded += next(expansions)
        spans.append((start, len(expanded)))
        expanded += around[1]
    images: list[ImageInput] = []
    own = iter(spans)
    for content_hash, image in loaded:
        group = [next(own) for _ in image.expansions or (None,)]
        places = [
            position
            for start, end in group
            for position in range(start, end)
            if not image.expansions or expanded[position] == (placeholder_id or token_id)
        ]
        images.append(_place(content_hash, image, places))
    return expanded, images


def _expansions(loaded: Sequence[LoadedImages], token_id: int) -> Iterator[Sequence[int]]:
    for _, image in loaded:
        yield from image.expansions or ([token_id] * image.num_rows,)


def _place(content_hash: bytes, image: ProcessedImage, places: list[int]) -> ImageInput:
    """`places` are the positions of its embedding rows."""
    first, end = places[0], places[-1] + 1
    return ImageInput(
        content_hash,
        image.pixels,
        offset=first,
        num_tokens=end - first,
        layout=image.layout,
        places=None if end - first == len(places) else np.array(places, np.int32) - first,
        arrays=image.arrays,
    )
