"""The pixels of transformers' Pillow processor, bit for bit, whatever the size of the image."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.engine.inputs.pictures import noise
from vlmflow_engine.errors import ImageTooLargeError, ModelError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.inputs.image_processors.clip import ClipImageProcessor

PROCESSORS: dict[str, dict[str, Any]] = {
    "square": {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}},
    "odd resize, even crop": {
        "size": {"shortest_edge": 97},
        "crop_size": {"height": 64, "width": 66},
    },
    "odd crop, bilinear": {
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 33, "width": 31},
        "resample": 2,
    },
    "no crop": {"size": {"shortest_edge": 33}, "do_center_crop": False},
    "ratio not kept": {"size": {"height": 50, "width": 61}, "do_center_crop": False, "resample": 1},
    "ratio not kept, crop": {
        "size": {"height": 50, "width": 61},
        "crop_size": {"height": 31, "width": 32},
    },
    "nothing": {"do_resize": False, "do_center_crop": False},
}
SIZES = [
    *[(1, 1), (1, 2), (2, 1), (3, 2), (1, 333), (333, 1), (2, 301), (500, 3)],
    *[(96, 96), (97, 96), (96, 97), (95, 95), (97, 97), (33, 34), (48, 49), (50, 61), (61, 50)],
    *[(640, 480), (481, 641), (128, 511), (1024, 99)],
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} x {size[1]}")
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = CLIPImageProcessorPil(**PROCESSORS[name])
    theirs.save_pretrained(tmp_path)
    ours = ClipImageProcessor.read(tmp_path, 1)
    image = noise(*size)
    pixels = ours(image, {}).pixels
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, _pixels(theirs, image))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
def test_normalised_pixels_are_those_of_transformers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = CLIPImageProcessorPil(**PROCESSORS["square"], **options)
    theirs.save_pretrained(tmp_path)
    ours = ClipImageProcessor.read(tmp_path, 1)
    image = noise(130, 100)
    how = ours.normalisation
    normalised = (ours(image, {}).pixels * how.rescale - np.array(how.mean)) / np.array(how.std)
    expected = theirs.preprocess(image)["pixel_values"][0]
    np.testing.assert_allclose(normalised, np.moveaxis(expected, 0, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config.json": {"image_mean": [0.5] * 3, "size": 64, "crop_size": 32}},
        {"preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor"}},
        {"preprocessor_config.json": {"image_processor_type": "CLIPImageProcessorFast"}},
        {"preprocessor_config.json": {"feature_extractor_type": "CLIP", "image_mean": [0.5] * 3}},
        {
            "processor_config.json": {
                "image_processor": {"image_processor_type": "CLIPImageProcessor"}
            }
        },
        {
            "preprocessor_config.json": {"image_mean": [0.5] * 3, "size": 64, "crop_size": 32},
            "processor_config.json": {"processor_class": "LlavaProcessor"},
        },
        {
            "preprocessor_config.json": {"image_mean": [0.5] * 3, "size": 64, "crop_size": 32},
            "processor_config.json": {
                "image_processor": {
                    "image_processor_type": "CLIPImageProcessor",
                    "size": {"shortest_edge": 80},
                    "crop_size": {"height": 80, "width": 80},
                }
            },
        },
    ],
    ids=lambda files: " ".join(str(content)[:45] for content in files.values()),
)
def test_configuration_is_read_as_transformers_reads_it(
    files: dict[str, Any], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    ours = ClipImageProcessor.read(tmp_path, 1)
    image = noise(130, 100)
    np.testing.assert_array_equal(ours(image, {}).pixels, _pixels(theirs, image))
    assert ours.normalisation.mean == tuple(theirs.image_mean)


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "SiglipImageProcessor"},
        {"image_mean": [0.5] * 3, "size": 64, "crop_size": 65},
        {"image_mean": [0.5] * 3, "size": {"height": 64, "width": 60}, "crop_size": 62},
        {"image_mean": [0.5] * 3, "do_resize": False, "crop_size": 32},
        {"image_mean": [0.5] * 3, "size": {"shortest_edge": 224, "longest_edge": 300}},
        {"image_mean": [0.5] * 3, "size": {"max_height": 224, "max_width": 224}},
        {"image_mean": [0.5] * 3, "crop_size": {"shortest_edge": 224}},
        {"image_mean": [0.5]},
        {"image_mean": 0.5},
        {"image_mean": [0.5] * 3, "image_std": [0, 1, 1]},
        {"image_mean": [0.5] * 3, "resample": 99},
        {"image_mean": [0.5] * 3, "resample": "bicubic"},
        {"processor_class": "LlavaProcessor"},
        [],
    ],
    ids=str,
)
def test_what_cannot_be_done_as_configured_is_the_models_fault(config: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=str(tmp_path)):
        ClipImageProcessor.read(tmp_path, 1)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_missing_or_broken_configuration_is_the_models_fault(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        ClipImageProcessor.read(tmp_path, 1)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_line_that_would_fill_the_memory_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLargeError, match="9,600,000"):
        _processor()(Image.new("RGB", size), {})


def test_digest_names_every_parameter() -> None:
    processor = _processor()
    normalisation = processor.normalisation
    others = [
        dataclasses.replace(processor, shortest_edge=97),
        dataclasses.replace(processor, shortest_edge=None, size=(96, 96)),
        dataclasses.replace(processor, crop=(96, 95)),
        dataclasses.replace(processor, crop=None),
        dataclasses.replace(processor, resample=2),
        dataclasses.replace(processor, num_rows=37),
        *(
            dataclasses.replace(
                processor, normalisation=dataclasses.replace(normalisation, **change)
            )
            for change in ({"rescale": 1.0}, {"mean": (0.0, 0.0, 0.1)}, {"std": (1.0, 1.0, 0.9)})
        ),
    ]
    assert len({other.digest({}) for other in (processor, *others)}) == len(others) + 1
    assert processor.digest({}) == _processor().digest({})
    assert processor.digest({"max_pixels": 9}) != processor.digest({})


def _processor() -> ClipImageProcessor:
    return ClipImageProcessor(
        shortest_edge=96,
        size=None,
        crop=(96, 96),
        resample=3,
        num_rows=36,
        normalisation=Normalisation(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )


def _pixels(theirs: CLIPImageProcessorPil, image: Image.Image) -> NDArray[np.uint8]:
    """What transformers makes of an image, before it is normalised."""
    processed = theirs.preprocess(image, do_rescale=False, do_normalize=False)
    return np.moveaxis(processed["pixel_values"][0], 0, -1)
