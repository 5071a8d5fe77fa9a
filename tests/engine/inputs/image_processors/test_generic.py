"""Images through transformers' processors: the same ids and arrays as transformers' own call."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.tiny_generic import MAKERS, save_tiny_generic
from vlmflow_engine.errors import MediaError, ModelError
from vlmflow_engine.inputs.builder import InputBuilder
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.image_processors import load_image_processor
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor
from vlmflow_engine.models.generic.processor_class import load_processor
from vlmflow_engine.models.registry import image_format, read_config

SIZES = [(96, 40), (33, 70), (200, 150)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = save_tiny_generic(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def pictures(count=3):
    pixels = np.random.default_rng(7)
    return [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES[:count]
    ]


def builder(folder):
    return InputBuilder(
        folder, image_format(read_config(folder)), lambda image: image, max_image_pixels=1 << 28
    )


def ask(images):
    return [
        {
            "role": "user",
            "content": [
                *({"type": "image", "image": image} for image in images),
                {"type": "text", "text": "how many red shapes"},
            ],
        }
    ]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_prompts_are_those_of_transformers(folders, name, count):
    folder, images = folders(name), pictures(count)
    theirs = load_processor(folder).apply_chat_template(
        ask(images), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    expected = np.asarray(theirs["input_ids"])[0].tolist()
    ours = builder(folder).build(ask(images))
    assert list(ours.token_ids) == expected
    form = image_format(read_config(folder))
    num_rows = expected.count(form.parameters["placeholder_id"])
    assert sum(image.num_rows for image in ours.images) == num_rows


@pytest.mark.parametrize(("name", "is_joined"), [("llava-onevision", True), ("idefics3", False)])
def test_images_are_processed_together_only_where_they_have_to(folders, name, is_joined):
    images = builder(folders(name)).build(ask(pictures())).images
    assert len(images) == (1 if is_joined else 3)
    assert builder(folders(name)).image_processor.joins_images is is_joined


def test_the_same_picture_among_others_is_another_image_where_it_is_joined(folders):
    prepare = builder(folders("llava-onevision")).build
    first, second, third = pictures()
    alone, together = prepare(ask([first])), prepare(ask([first, second]))
    others = prepare(ask([first, third]))
    hashes = {prepared.images[0].content_hash for prepared in (alone, together, others)}
    assert len(hashes) == 3
    assert prepare(ask([first, second])).images[0].content_hash in hashes


@pytest.mark.parametrize("file", ["processor_config.json", "config.json"])
def test_the_processors_files_are_part_of_an_images_name(file, tmp_path):
    folder = save_tiny_generic("idefics3", tmp_path)
    picture = pictures(1)
    before = builder(folder).build(ask(picture)).images[0].content_hash
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": 1}))
    assert builder(folder).build(ask(picture)).images[0].content_hash != before


@pytest.mark.parametrize(
    ("name", "beside"), [("idefics3", "pixel_attention_mask"), ("pixtral", "image_sizes")]
)
def test_a_worker_prepares_the_same_without_torch(folders, name, beside):
    folder = folders(name)
    form = image_format(read_config(folder))
    spec = BuilderSpec(
        folder=folder,
        image_format=form,
        fetch=NamedFetcher("vlmflow_engine.vl.fetch:MediaFetcher"),
        max_image_pixels=1 << 28,
    )
    here = builder(folder).build(ask(pictures()))
    pool = ProcessPreprocessor(spec, num_workers=1)
    try:
        pool.wait_until_ready()
        pool.submit(0, ask(pictures()))
        _, there = pool.take(block=True, timeout=60)
    finally:
        pool.close()
    assert there.token_ids == here.token_ids
    for ours, theirs in zip(there.images, here.images, strict=True):
        assert ours.content_hash == theirs.content_hash
        assert (ours.offset, ours.num_tokens) == (theirs.offset, theirs.num_tokens)
        np.testing.assert_array_equal(ours.places, theirs.places)
        assert ours.pixels.dtype == np.float32
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.arrays.keys() == theirs.arrays.keys() == {beside}
        for name in ours.arrays:
            np.testing.assert_array_equal(ours.arrays[name], theirs.arrays[name])


def test_what_transformers_refuses_is_an_error_of_the_image(folders, monkeypatch):
    processor = load_image_processor(
        folders("idefics3"), image_format(read_config(folders("idefics3")))
    )

    def fail(**_):
        raise ValueError("an image\nof this kind")

    monkeypatch.setattr(type(processor.processor.processor), "__call__", lambda self, **_: fail())
    with pytest.raises(MediaError, match="Idefics3Processor refuses .*: an image of this"):
        processor(pictures(1)[0], {})


def test_a_processor_that_is_none_of_transformers_is_never_loaded(tmp_path):
    folder = save_tiny_generic("idefics3", tmp_path)
    marker = folder / "was_here"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content |= {
        "processor_class": "EvilProcessor",
        "auto_map": {"AutoProcessor": "evil.EvilProcessor"},
    }
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="transformers has no processor 'EvilProcessor'"):
        builder(folder)
    assert not marker.exists()
