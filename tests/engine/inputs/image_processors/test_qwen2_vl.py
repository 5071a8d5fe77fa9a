"""Sizes and pixels of transformers' Pillow processor, bit for bit, whatever the image's size."""

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
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as their_resize

from tests.engine.inputs.pictures import noise
from vlmflow_engine.errors import ImageFormatError, ImageTooLargeError, ModelError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.inputs.image_processors.qwen2_vl import Qwen2VLImageProcessor, smart_resize

PARAMETERS = {"patch_size": 14, "merge_size": 2}
MIN_PIXELS, MAX_PIXELS = 3136, 12845056  # of the released checkpoints
CONFIG = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": MIN_PIXELS,
    "max_pixels": MAX_PIXELS,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
SIZES = [
    *[(28, 28), (56, 56), (28, 29), (42, 14), (14, 14), (1, 1), (1, 200), (200, 1), (13, 2000)],
    *[(640, 480), (97, 131), (1000, 50), (50, 1000), (70, 42), (3000, 2000)],
]


@pytest.mark.parametrize(
    ("size", "resized", "num_rows"),
    [
        ((640, 480), (644, 476), 391),
        ((1000, 1000), (1008, 1008), 1296),
        ((1920, 1080), (1932, 1092), 2691),
        ((100, 100), (112, 112), 16),
        ((28, 28), (56, 56), 4),
        ((4000, 3000), (4004, 2996), 15301),
        ((8000, 6000), (4116, 3080), 16170),
        ((4000, 20), (4004, 28), 143),
    ],
)
def test_sizes_and_rows_are_the_known_ones(size, resized, num_rows):
    processor = _processor()
    height, width = processor.size(size[1], size[0], {})
    assert (width, height) == resized
    assert (height // 28) * (width // 28) == num_rows


@pytest.mark.parametrize(
    ("size", "resized"), [((1920, 1080), (1316, 728)), ((1000, 1000), (980, 980))]
)
def test_a_limit_of_1280_rows_gives_the_known_sizes(size, resized):
    options = {"max_pixels": 1280 * 28 * 28}
    assert _processor().size(size[1], size[0], options) == resized[::-1]


@settings(deadline=None)
@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.sampled_from([16, 28, 32]),
    st.integers(1, 200_000),
    st.integers(0, 20_000_000),
)
def test_every_size_is_that_of_transformers(height, width, unit, low, more):
    height = max(height, -(-width // 200))
    width = max(width, -(-height // 200))
    limits = {"min_pixels": low, "max_pixels": low + more}
    assert smart_resize(height, width, unit, **limits) == their_resize(
        height, width, unit, **limits
    )


@settings(deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 30_000), st.integers(1, 10**6), st.integers(0, 10**7))
def test_no_image_has_more_rows_than_the_most_that_are_announced(height, width, low, more):
    height = max(height, -(-width // 200))
    width = max(width, -(-height // 200))
    processor = dataclasses.replace(_processor(), min_pixels=low, max_pixels=low + more)
    resized = processor.size(height, width, {})
    assert resized[0] * resized[1] // 28**2 <= processor.max_rows


def test_the_most_rows_are_those_of_the_pixels_allowed():
    assert _processor().max_rows == MAX_PIXELS // 28**2 == 16384


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} x {size[1]}")
def test_pixels_are_those_of_transformers(size, tmp_path):
    theirs, ours = _both(CONFIG | {"max_pixels": 500_000}, tmp_path)
    image = noise(*size)
    processed = ours(image, {})
    assert processed.pixels.dtype == np.uint8
    expected = theirs.preprocess(image, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(_patch_rows(processed.pixels), expected["pixel_values"])
    grid = expected["image_grid_thw"][0]
    assert processed.layout == (1, grid[1] // 2, grid[2] // 2)
    assert processed.num_rows == grid.prod() // 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False},
    ],
    ids=str,
)
def test_normalised_patches_are_those_of_transformers(fields, tmp_path):
    theirs, ours = _both(CONFIG | fields, tmp_path)
    image, how = noise(130, 100), ours.normalisation
    pixels = ours(image, {}).pixels
    normalised = (pixels * how.rescale - np.array(how.mean)) / np.array(how.std)
    expected = theirs.preprocess(image)["pixel_values"]
    np.testing.assert_allclose(_patch_rows(normalised), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image_processor_type": "Qwen2VLImageProcessorFast"},
        {"min_pixels": 100, "max_pixels": 90_000},
        {"max_pixels": 90_000},
        {"size": {"shortest_edge": 40_000, "longest_edge": 90_000}},
        {"size": {"shortest_edge": 40_000, "longest_edge": 90_000}, "max_pixels": None},
        {"size": {"shortest_edge": 4_000, "longest_edge": 90_000}, "max_pixels": 5_000},
        {"resample": 2, "max_pixels": 90_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_configuration_is_read_as_transformers_reads_it(name, config, tmp_path):
    config = {"image_processor_type": "Qwen2VLImageProcessor"} | config
    content = config if name.startswith("pre") else {"image_processor": config}
    (tmp_path / name).write_text(json.dumps(content))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    ours = Qwen2VLImageProcessor.from_folder(tmp_path, PARAMETERS)
    for size in ((130, 100), (700, 500), (1300, 1000)):
        image = noise(*size)
        expected = theirs.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"]
        np.testing.assert_array_equal(_patch_rows(ours(image, {}).pixels), expected)


def test_an_older_spelling_of_the_limits_is_read_too(tmp_path):
    config = {"image_mean": [0.5] * 3, "size": {"min_pixels": 10_000, "max_pixels": 20_000}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = Qwen2VLImageProcessor.from_folder(tmp_path, PARAMETERS)
    assert (processor.min_pixels, processor.max_pixels) == (10_000, 20_000)


def test_other_patches_make_other_units(tmp_path):
    fields = {"patch_size": 16, "merge_size": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG | fields))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    ours = Qwen2VLImageProcessor.from_folder(tmp_path, fields)
    image = noise(130, 170)
    expected = theirs.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"]
    np.testing.assert_array_equal(_patch_rows(ours(image, {}).pixels, 16, 3), expected)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"min_pixels": 200_000}, {"shortest_edge": 200_000, "longest_edge": MAX_PIXELS}),
        ({"max_pixels": 9_000}, {"shortest_edge": MIN_PIXELS, "longest_edge": 9_000}),
        (
            {"min_pixels": 9_000, "max_pixels": 10_000},
            {"shortest_edge": 9_000, "longest_edge": 10_000},
        ),
        ({"max_dynamic_patch": 2}, {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}),
        # The caller's word counts where it contradicts the checkpoint's.
        ({"max_pixels": 1_600}, {"shortest_edge": 1_600, "longest_edge": 1_600}),
    ],
    ids=str,
)
def test_an_images_own_limits_are_those_of_a_call_to_transformers(options, size, tmp_path):
    theirs, ours = _both(CONFIG, tmp_path)
    image = noise(131, 97)
    expected = theirs.preprocess(image, do_rescale=False, do_normalize=False, size=size)
    pixels = ours(image, options).pixels
    np.testing.assert_array_equal(_patch_rows(pixels), expected["pixel_values"])


def test_a_lower_limit_above_the_checkpoints_upper_one_moves_it():
    processor = dataclasses.replace(_processor(), max_pixels=10_000)
    height, width = processor.size(50, 50, {"min_pixels": 40_000})
    assert (height, width) == (224, 224)


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (28, 5601), (10_000, 49)])
def test_an_image_far_longer_than_wide_is_refused_in_a_sentence(size):
    with pytest.raises(ImageFormatError, match="one side is more than 200 times the other"):
        _processor()(Image.new("RGB", size), {})


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (28, 5600), (10_000, 50)])
def test_an_image_just_short_enough_is_taken(size):
    assert _processor()(Image.new("RGB", size), {}).num_rows > 0


def test_an_image_that_would_be_blown_up_to_fill_the_memory_is_refused():
    with pytest.raises(ImageTooLargeError, match="lower its min_pixels=1000000000000000000 "):
        _processor()(Image.new("RGB", (20, 20)), {"min_pixels": 10**18})


def test_an_image_of_no_whole_units_is_refused_where_none_is_resized(tmp_path):
    theirs, ours = _both(CONFIG | {"do_resize": False}, tmp_path)
    image = noise(84, 56)
    expected = theirs.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"]
    np.testing.assert_array_equal(_patch_rows(ours(image, {}).pixels), expected)
    with pytest.raises(ImageFormatError, match="both must be multiples of 28"):
        ours(noise(84, 57), {})


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "SiglipImageProcessor"},
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16},
        {"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 4},
        {"image_mean": [0.5] * 3, "min_pixels": 0},
        {"image_mean": [0.5] * 3, "max_pixels": "many"},
        {"image_mean": [0.5] * 3, "max_pixels": 2.5},
        {"image_mean": [0.5] * 3, "min_pixels": 10_000, "max_pixels": 9_000},
        {"image_mean": [0.5] * 3, "size": 224},
        {"image_mean": [0.5] * 3, "size": {"longest_edge": -1}},
        {"image_mean": [0.5]},
        {"image_mean": [0.5] * 3, "image_std": [0, 1, 1]},
        {"image_mean": [0.5] * 3, "resample": "bicubic"},
        {"processor_class": "Qwen2VLProcessor"},
        [],
        None,
    ],
    ids=str,
)
def test_what_cannot_be_done_as_configured_is_the_models_fault(config: Any, tmp_path: Path):
    if config is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        Qwen2VLImageProcessor.from_folder(tmp_path, PARAMETERS)
    assert "\n" not in str(caught.value)


def test_digest_names_every_parameter():
    processor = _processor()
    others = [
        dataclasses.replace(processor, unit=32),
        dataclasses.replace(processor, min_pixels=5),
        dataclasses.replace(processor, max_pixels=MAX_PIXELS + 1),
        dataclasses.replace(processor, do_resize=False),
        dataclasses.replace(processor, resample=2),
    ]
    assert len({other.digest({}) for other in (processor, *others)}) == len(others) + 1
    assert processor.digest({"max_pixels": 9}) != processor.digest({})


def _both(
    config: dict[str, Any], folder: Path
) -> tuple[Qwen2VLImageProcessorPil, Qwen2VLImageProcessor]:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return theirs, Qwen2VLImageProcessor.from_folder(folder, PARAMETERS)


def _processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(
        unit=28,
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        do_resize=True,
        resample=3,
        normalisation=Normalisation(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )


def _patch_rows(pixels: NDArray[Any], patch: int = 14, merge: int = 2) -> NDArray[Any]:
    """Cut pixels as transformers hands them to its tower: two equal frames, unit by unit."""
    frames = np.stack([np.moveaxis(pixels, -1, 0)] * 2)  # [2, 3, height, width]
    height, width = pixels.shape[:2]
    rows = []
    for top in range(0, height, patch * merge):
        for left in range(0, width, patch * merge):
            for y in range(top, top + patch * merge, patch):
                for x in range(left, left + patch * merge, patch):
                    cut = frames[:, :, y : y + patch, x : x + patch]
                    rows.append(cut.transpose(1, 0, 2, 3).reshape(-1))
    return np.stack(rows)
