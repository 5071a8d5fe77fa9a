"""InternVL's tiles are those of transformers' Pillow processor, bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import GotOcr2ImageProcessorPil

from tests.engine.inputs.pictures import noise
from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.image_processors.internvl import (
    InternVLChatImageProcessor,
    InternVLImageProcessor,
)

SIDE = 56
TOWER = {"patch_size": 14, "shuffle_factor": 2}
PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "few": {"max_patches": 4},
    "at least": {"min_patches": 3, "max_patches": 6},
    "one": {"max_patches": 1},
    "bilinear": {"resample": 2},
}
SIZES = [
    *[(4, 4), (56, 56), (57, 56), (112, 56), (640, 480), (480, 641), (113, 111)],
    *[(1000, 50), (50, 1000), (1000, 5), (5, 1000), (20, 10)],
]
CHAT: dict[str, Any] = TOWER | {
    "side": SIDE,
    "min_tiles": 1,
    "max_tiles": 12,
    "is_dynamic": True,
    "has_thumbnail": True,
}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} x {size[1]}")
@pytest.mark.parametrize("name", PROCESSORS)
def test_tiles_are_those_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = _theirs(**PROCESSORS[name])
    theirs.save_pretrained(tmp_path)
    ours = InternVLImageProcessor.from_folder(tmp_path, TOWER)
    image = noise(*size)
    processed = ours(image, {})
    assert processed.pixels.dtype == np.uint8
    np.testing.assert_array_equal(processed.pixels, _tiles(theirs, image))
    assert processed.num_rows == 4 * len(processed.pixels) <= ours.max_rows


def test_the_original_cuts_as_hugging_face_does() -> None:
    ours = InternVLChatImageProcessor.from_folder(Path("x"), CHAT)
    for size in SIZES:
        image = noise(*size)
        np.testing.assert_array_equal(ours(image, {}).pixels, _tiles(_theirs(), image))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1, 1), (1, 1)),
        ((1, 2), (1, 2)),
        ((1, 300), (1, 12)),
        ((300, 1), (12, 1)),
        ((3, 200), (1, 12)),
        ((200, 3), (12, 1)),
    ],
)
def test_an_image_of_few_lines_is_stretched_over_its_tiles(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """transformers takes such a side for the colours; the authors' code does as is done here."""
    image = noise(*size)
    tiles = InternVLChatImageProcessor.from_folder(Path("x"), CHAT)(image, {}).pixels
    columns, rows = grid
    canvas = image.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    for number in range(columns * rows):
        left, top = number % columns * SIDE, number // columns * SIDE
        tile = canvas.crop((left, top, left + SIDE, top + SIDE))
        np.testing.assert_array_equal(tiles[number], np.asarray(tile))
    if columns * rows > 1:
        thumbnail = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(tiles[-1], np.asarray(thumbnail))
    assert len(tiles) == columns * rows + (columns * rows > 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(1, 4),
    st.integers(4, 30),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(1, 40),
)
def test_rows_are_those_of_the_tiles_and_no_more_than_promised(
    width: int,
    height: int,
    low: int,
    high: int,
    is_dynamic: bool,
    has_thumbnail: bool,
    option: int | None,
) -> None:
    changed = {
        "min_tiles": low,
        "max_tiles": high,
        "is_dynamic": is_dynamic,
        "has_thumbnail": has_thumbnail,
    }
    ours = InternVLChatImageProcessor.from_folder(Path("x"), CHAT | changed)
    processed = ours(
        Image.new("RGB", (width, height)), {} if option is None else {"max_dynamic_patch": option}
    )
    num_tiles = len(processed.pixels)
    assert processed.pixels.shape[1:] == (SIDE, SIDE, 3)
    assert processed.num_rows == num_tiles * (SIDE // 14 // 2) ** 2
    if option is None:
        assert processed.num_rows <= ours.max_rows
    most = (option or high) + has_thumbnail if is_dynamic else 1
    assert num_tiles <= most


def test_a_caller_limits_the_tiles_of_one_image() -> None:
    ours = InternVLChatImageProcessor.from_folder(Path("x"), CHAT)
    image = noise(640, 480)
    for limit, max_patches in ((1, 1), (6, 6), (24, 24)):
        theirs = _theirs(max_patches=max_patches)
        tiles = ours(image, {"max_dynamic_patch": limit, "min_pixels": 1}).pixels
        np.testing.assert_array_equal(tiles, _tiles(theirs, image))
    one = InternVLChatImageProcessor.from_folder(Path("x"), CHAT | {"is_dynamic": False})
    assert len(one(image, {"max_dynamic_patch": 6}).pixels) == 1
    with pytest.raises(InvalidRequestError, match="max_dynamic_patch is at most 256, got 257"):
        ours(image, {"max_dynamic_patch": 257})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_rescale": False},
        {"do_normalize": False},
    ],
    ids=str,
)
def test_normalised_pixels_are_those_of_transformers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = _theirs(**options)
    theirs.save_pretrained(tmp_path)
    ours = InternVLImageProcessor.from_folder(tmp_path, TOWER)
    image = noise(130, 60)
    how = ours.normalisation
    normalised = (ours(image, {}).pixels * how.rescale - np.array(how.mean)) / np.array(how.std)
    expected = np.stack(theirs.preprocess(image, crop_to_patches=True)["pixel_values"])
    np.testing.assert_allclose(normalised, np.moveaxis(expected, 1, -1), rtol=1e-5, atol=1e-5)


def test_the_original_is_normalised_by_imagenets_numbers() -> None:
    how = InternVLChatImageProcessor.from_folder(Path("x"), CHAT).normalisation
    assert (how.rescale, how.mean, how.std) == (
        1 / 255,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "CLIPImageProcessor"},
        {"image_processor_type": None},
        {"size": {"height": 56, "width": 70}},
        {"size": {"height": 70, "width": 70}},
        {"size": {"height": 7, "width": 7}},
        {"size": {"shortest_edge": 56}},
        {"size": {"height": "56", "width": "56"}},
        {"size": 56},
        {"min_patches": 0},
        {"min_patches": 5, "max_patches": 4},
        {"max_patches": 257},
        {"max_patches": "many"},
        {"max_patches": 1, "do_resize": False},
        {"image_std": [0, 1, 1]},
        {"resample": 99},
    ],
    ids=str,
)
def test_what_cannot_be_done_as_configured_is_the_models_fault(
    config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "preprocessor_config.json"
    good = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": SIDE, "width": SIDE},
    }
    path.write_text(json.dumps(good))
    assert InternVLImageProcessor.from_folder(tmp_path, TOWER).max_rows == 13 * 4
    path.write_text(json.dumps(good | config))
    with pytest.raises(ModelError, match=str(tmp_path)):
        InternVLImageProcessor.from_folder(tmp_path, TOWER)


def test_a_checkpoint_without_an_image_processor_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no image processor"):
        InternVLImageProcessor.from_folder(tmp_path, TOWER)


def test_digest_names_every_parameter() -> None:
    processor = InternVLChatImageProcessor.from_folder(Path("x"), CHAT)
    changes: list[dict[str, Any]] = [
        {"side": 28},
        {"rows_per_tile": 9},
        {"min_tiles": 2},
        {"max_tiles": 6},
        {"is_dynamic": False},
        {"has_thumbnail": False},
        {"resample": 2},
    ]
    digests = {dataclasses.replace(processor, **change).digest({}) for change in ({}, *changes)}
    assert len(digests) == len(changes) + 1
    assert processor.digest({"max_dynamic_patch": 6}) not in digests


def _theirs(**options: Any) -> GotOcr2ImageProcessorPil:
    fields = {"size": {"height": SIDE, "width": SIDE}, "crop_to_patches": True}
    return GotOcr2ImageProcessorPil(**fields | options)


def _tiles(theirs: GotOcr2ImageProcessorPil, image: Image.Image) -> NDArray[np.uint8]:
    """What transformers makes of an image, before it is normalised."""
    processed = theirs.preprocess(image, do_rescale=False, do_normalize=False)
    return np.moveaxis(np.stack(processed["pixel_values"]), 1, -1)
