"""LLaVA-1.5's square: the authors' padding, then the pixels of transformers' CLIP processor."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.engine.inputs.pictures import noise
from vlmflow_engine.errors import ImageTooLargeError, ModelError
from vlmflow_engine.inputs.image_processors.llava_square import LlavaSquareImageProcessor

SIZES = [(42, 42), (640, 480), (480, 641), (1, 1), (1, 90), (300, 7), (43, 42)]


def make(pads: bool, **preprocessor: object) -> LlavaSquareImageProcessor:
    parameters = {"side": 42, "num_rows": 9, "pads": pads, "preprocessor": preprocessor}
    return LlavaSquareImageProcessor.from_folder(Path("a folder"), parameters)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_the_authors(size, pads):
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}
    )
    image = noise(*size)
    square = image
    if pads:
        side = max(size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = theirs.preprocess(square, do_rescale=False, do_normalize=False)["pixel_values"][0]
    processed = make(pads)(image, {})
    np.testing.assert_array_equal(processed.pixels, np.moveaxis(expected, 0, -1))
    assert processed.num_rows == make(pads).max_rows == 9


def test_the_colour_of_the_padding_is_the_towers_mean():
    white = Image.new("RGB", (10, 420), (255, 255, 255))
    pixels = make(True, image_mean=[0.5, 0.25, 0.0])(white, {}).pixels
    assert pixels[0, 0].tolist() == [127, 63, 0]


def test_a_line_whose_square_would_fill_the_memory_is_refused():
    with pytest.raises(ImageTooLargeError, match="625,000,000 pixels"):
        make(True)(Image.new("RGB", (1, 25_000)), {})


def test_a_tower_of_another_size_is_the_models_fault():
    with pytest.raises(ModelError, match="makes images of"):
        make(True, crop_size={"height": 28, "width": 28})


def test_padding_is_a_part_of_the_digest():
    assert make(True).digest({}) != make(False).digest({})
