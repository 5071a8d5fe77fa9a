"""Where an image's rows go, whatever its tokens look like."""

import numpy as np
import pytest

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.expansion import expand_images
from vlmflow_engine.inputs.image_processors.base import ProcessedImage

IMAGE, ROW, BREAK, END = 3, 70, 71, 72
PIXELS = np.zeros((1, 1, 3), np.uint8)


def processed(num_rows, *expansions):
    return ProcessedImage(PIXELS, num_rows, expansions=expansions)


def expand(token_ids, loaded, **options):
    loaded = [(b"%d" % number, image) for number, image in enumerate(loaded)]
    return expand_images(token_ids, loaded, token_id=IMAGE, **options)


def positions(image):
    """Of its embedding rows, in their order."""
    return [
        position + index
        for position, first, last in image.runs(0, 1000)
        for index in range(last - first)
    ]


def test_an_image_becomes_a_placeholder_for_each_row():
    ids, images = expand([1, IMAGE, 5, IMAGE], [processed(3), processed(2)])
    assert ids == [1, *[IMAGE] * 3, 5, *[IMAGE] * 2]
    assert [(image.offset, image.num_tokens, image.places) for image in images] == [
        (1, 3, None),
        (5, 2, None),
    ]


def test_tokens_between_an_images_rows_are_left_as_they_are():
    expansion = (ROW, ROW, BREAK, ROW, ROW, END)
    ids, (image,) = expand([1, IMAGE, 5], [processed(4, expansion)], placeholder_id=ROW)
    assert ids == [1, *expansion, 5]
    assert (image.offset, image.num_tokens, image.num_rows) == (1, 5, 4)
    assert positions(image) == [1, 2, 4, 5]


def test_the_tokens_before_an_images_rows_are_no_part_of_it():
    ids, (image,) = expand([IMAGE], [processed(2, (BREAK, ROW, ROW, END))], placeholder_id=ROW)
    assert (image.offset, image.num_tokens, image.places) == (1, 2, None)


def test_images_that_were_processed_together_are_one_with_the_text_between():
    together = processed(3, (ROW, ROW), (ROW, END))
    ids, (image,) = expand([1, IMAGE, 5, 6, IMAGE, 7], [together], placeholder_id=ROW)
    assert ids == [1, ROW, ROW, 5, 6, ROW, END, 7]
    assert (image.offset, image.end, image.num_rows) == (1, 6, 3)
    assert positions(image) == [1, 2, 5]


def test_a_chunk_gets_the_rows_that_are_in_it():
    _, (image,) = expand(
        [9, IMAGE], [processed(4, (ROW, ROW, BREAK, ROW, ROW))], placeholder_id=ROW
    )
    assert image.runs(0, 3) == [(1, 0, 2)]
    assert image.runs(2, 5) == [(2, 1, 2), (4, 2, 3)]
    assert image.runs(3, 4) == []
    assert image.runs(4, 6) == [(4, 2, 4)]


@pytest.mark.parametrize("token_ids", [[1], [1, IMAGE, IMAGE]], ids=["none", "two"])
def test_an_image_without_a_token_of_its_own_is_refused(token_ids):
    with pytest.raises(InvalidRequestError, match="image tokens for 1 images"):
        expand(token_ids, [processed(3)])
