"""LLaVA-1.6's tiles: transformers' pixels bit for bit, and both rules' published counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from tests.engine.inputs.pictures import noise
from tests.tiny_llava import tiny_processor
from vlmflow_engine.errors import ImageFormatError, ModelError
from vlmflow_engine.inputs.image_processors.anyres import AnyresImageProcessor, best_pinpoint

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

# (width, height): (grid in pixels, columns and rows of features that are kept, all rows) by the
# authors' rule, and by transformers' where that is another one.
GOLDEN: dict[tuple[int, int], Any] = {
    (640, 480): [((672, 672), (48, 36), 2340)],
    (480, 640): [((672, 672), (36, 48), 2352)],
    (1000, 1000): [((672, 672), (48, 48), 2928)],
    (1920, 1080): [((672, 672), (48, 28), 1948)],
    (1080, 1920): [((672, 672), (28, 48), 1968)],
    (3000, 500): [((1008, 336), (72, 12), 1452)],
    (500, 3000): [((336, 1008), (12, 72), 1512)],
    (50, 1000): [((336, 1008), (4, 72), 936)],
    (300, 300): [((336, 672), (24, 24), 1176), ((672, 336), (24, 24), 1176)],
    (235, 1128): [((336, 1008), (14, 72), 1656), ((336, 1008), (16, 72), 1800)],
    (376, 799): [((336, 1008), (24, 50), 1826), ((336, 1008), (24, 52), 1876)],
}


def make(
    *, rounds: bool, pinpoints: Any = PINPOINTS, side: int = 336, merge: str = "spatial_unpad"
) -> AnyresImageProcessor:
    return AnyresImageProcessor.from_folder(
        Path("a folder"),
        {
            "side": side,
            "features": side // 14,
            "pinpoints": [pair[::-1] for pair in pinpoints] if rounds else pinpoints,
            "merge": merge,
            "rounds": rounds,
            "preprocessor": {},
        },
    )


AUTHORS, TRANSFORMERS = make(rounds=False), make(rounds=True)


def described(processor: AnyresImageProcessor, size: tuple[int, int]) -> Any:
    processed = processor(Image.new("RGB", size), {})
    rows, columns, top, left = processed.layout
    assert len(processed.pixels) == 1 + rows * columns
    kept = (columns * 24 - 2 * left, rows * 24 - 2 * top)
    return (columns * 336, rows * 336), kept, processed.num_rows


@pytest.mark.parametrize("size", GOLDEN, ids=str)
def test_counts_are_the_published_ones(size):
    original, *converted = GOLDEN[size]
    assert described(AUTHORS, size) == original
    assert described(TRANSFORMERS, size) == (converted or [original])[0]


def theirs(side: int, pinpoints: Any) -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
    )


SMALL = [[28 * width, 28 * height] for width, height in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
SIZES = [
    *[(28, 28), (56, 56), (2, 2), (3, 90), (90, 3), (57, 56), (20, 27), (84, 28), (29, 83)],
    *[(640, 480), (481, 641), (40, 800), (800, 40), (100, 101)],
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} x {size[1]}")
def test_tiles_are_those_of_transformers(size):
    image, processor = noise(*size), theirs(28, SMALL)
    expected = processor.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    ours = make(rounds=True, pinpoints=SMALL, side=28)(image, {})
    assert ours.pixels.dtype == np.uint8
    np.testing.assert_array_equal(ours.pixels, np.moveaxis(np.array(expected), 1, -1))


def test_tiles_of_both_rules_are_the_same_where_they_choose_the_same_grid():
    image = noise(640, 480)
    original, converted = (
        make(rounds=rounds, pinpoints=SMALL, side=28)(image, {}) for rounds in (False, True)
    )
    np.testing.assert_array_equal(original.pixels, converted.pixels)
    small = noise(20, 27)
    original, converted = (
        make(rounds=rounds, pinpoints=SMALL, side=28)(small, {}) for rounds in (False, True)
    )
    assert original.layout[:2] == (2, 1) and converted.layout[:2] == (1, 2)


COUNTED = LlavaNextProcessor(
    image_processor=theirs(336, PINPOINTS),
    tokenizer=tiny_processor().tokenizer,
    patch_size=14,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
)


@settings(max_examples=300, deadline=None)
@given(width=st.integers(2, 5000), height=st.integers(2, 5000))
def test_rows_are_as_many_as_transformers_counts(width, height):
    grid = best_pinpoint((width, height), TRANSFORMERS.pinpoints)
    rows, columns = grid[1] // 336, grid[0] // 336
    layout = (rows, columns, *TRANSFORMERS._padding((width, height), rows, columns))
    (expected,) = COUNTED._get_num_multimodal_tokens([(height, width)]).num_image_tokens
    assert TRANSFORMERS._num_rows(layout) == expected
    assert expected <= TRANSFORMERS.max_rows == 2928


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_without_unpadding_every_feature_of_every_tile_is_a_row(merge):
    processor = make(rounds=False, merge=merge)
    assert described(processor, (640, 480)) == ((672, 672), (48, 48), 5 * 576)
    assert processor.max_rows == 5 * 576


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1)])
def test_an_image_of_one_pixel_a_side_is_refused(size):
    with pytest.raises(ImageFormatError, match="needs at least 2 pixels a side"):
        TRANSFORMERS(Image.new("RGB", size), {})


@pytest.mark.parametrize(
    "pinpoints", [[], [[336, 500]], [[336]], [[0, 336]], [[336.0, 672.0]], "x", [3], None], ids=str
)
def test_pinpoints_that_are_no_grid_are_the_models_fault(pinpoints):
    with pytest.raises(ModelError, match="must be pairs of multiples of 336"):
        make(rounds=False, pinpoints=pinpoints)
