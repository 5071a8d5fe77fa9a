"""A prompt becomes the ids and pixels that transformers makes of it, and nothing else gets in."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaProcessor

from examples.shapes.model import NUM_PATCHES
from tests.engine.inputs.pictures import encode, noise, oriented, png_that_claims
from vlmflow_engine.errors import (
    ImageTooLargeError,
    InvalidRequestError,
    MediaError,
    MediaFetchError,
    ModelError,
    RequestError,
)
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput

PICTURE, OTHER = noise(130, 100), noise(80, 200)


def _turn(*parts: str | Image.Image, role: str = "user") -> dict[str, Any]:
    return {
        "role": role,
        "content": [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part}
            for part in parts
        ],
    }


CONVERSATIONS = {
    "text": [_turn("How many shapes are there?")],
    "nothing": [_turn("")],
    "image": [_turn(PICTURE, "What is it?")],
    "image alone": [_turn(PICTURE)],
    "image last": [_turn("What is it?", PICTURE)],
    "two images": [_turn(PICTURE, OTHER, "Which is wider?")],
    "unicode": [_turn(PICTURE, "Ça va? 漢字 \U0001f600\n\t \u200b\U000f0000")],
    "turns": [
        _turn("Be brief.", role="system"),
        _turn(PICTURE, "One?"),
        _turn("Two.", role="assistant"),
        _turn("And here?", OTHER, PICTURE),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_has_the_ids_and_pixels_of_transformers(
    name: str, builder: InputBuilder, processor: LlavaProcessor
) -> None:
    prepared = builder.build(CONVERSATIONS[name])
    expected = processor.apply_chat_template(
        CONVERSATIONS[name], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert list(prepared.token_ids) == expected["input_ids"][0]
    how = builder.image_processor.normalisation
    pixels = [
        (image.pixels * how.rescale - np.array(how.mean)) / np.array(how.std)
        for image in prepared.images
    ]
    theirs = [np.moveaxis(image, 0, -1) for image in expected.get("pixel_values", [])]
    assert len(pixels) == len(theirs)
    for ours, their in zip(pixels, theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_images_lie_where_their_placeholders_are(
    name: str, builder: InputBuilder, processor: LlavaProcessor
) -> None:
    prepared = builder.build(CONVERSATIONS[name])
    placeholders = [
        place
        for place, token_id in enumerate(prepared.token_ids)
        if token_id == processor.image_token_id
    ]
    assert placeholders == [
        place for image in prepared.images for place in range(image.offset, image.end)
    ]
    assert {image.num_tokens for image in prepared.images} <= {NUM_PATCHES}


def test_image_is_the_same_from_wherever_it_comes(builder: InputBuilder, tmp_path: Path) -> None:
    data = encode(PICTURE, "PNG")
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    sources = [
        *(data, bytearray(data), path, str(path), path.as_uri()),
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
    ]
    images = [builder.build(("?", source)).images[0] for source in sources]
    assert len({image.content_hash for image in images}) == 1
    in_hand = builder.build(("?", PICTURE)).images[0]
    for image in (*images, in_hand):
        np.testing.assert_array_equal(image.pixels, images[0].pixels)


def _palette(*colours: int) -> Image.Image:
    image = Image.new("P", (120, 120))
    image.putpalette(colours)
    return image


def _file(orientation: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(PICTURE, "PNG", exif=oriented(orientation))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(noise(100, 100), noise(100, 100, seed=1), id="pixels"),
        pytest.param(
            Image.new("RGB", (100, 120), "red"), Image.new("RGB", (120, 100), "red"), id="size"
        ),
        pytest.param(
            Image.frombytes("L", (96, 96), bytes(range(96)) * 96),
            Image.frombytes("1", (96, 96), bytes(range(96)) * 12),
            id="mode",
        ),
        pytest.param(_palette(255, 0, 0), _palette(0, 0, 255), id="palette"),
        pytest.param(_file(1), _file(3), id="orientation"),
    ],
)
def test_pictures_that_look_different_are_told_apart(
    one: Image.Image, other: Image.Image, make_builder: Callable[..., InputBuilder]
) -> None:
    builder = make_builder()
    first, second = (builder.build(("?", image)).images[0] for image in (one, other))
    assert first.content_hash != second.content_hash
    alone = make_builder().build(("?", other)).images[0]
    np.testing.assert_array_equal(second.pixels, alone.pixels)


def test_image_processed_in_another_way_is_another_image(
    make_builder: Callable[..., InputBuilder], checkpoint: Path, tmp_path: Path
) -> None:
    folder = _changed(checkpoint, tmp_path, lambda config: config.update(resample=2))
    data = encode(PICTURE, "PNG")
    hashes = {
        make_builder(folder=where).build(("?", data)).images[0].content_hash
        for where in (checkpoint, folder)
    }
    assert len(hashes) == 2


def test_image_asked_about_again_is_not_decoded_again(
    make_builder: Callable[..., InputBuilder],
) -> None:
    builder = make_builder()
    data = encode(PICTURE, "PNG")
    first = builder.build(("What is it?", data)).images[0]
    for image in builder.build(("Where is it?", [data, data])).images:
        assert image.pixels is first.pixels


def test_pixels_kept_are_bounded_and_the_oldest_go_first(
    make_builder: Callable[..., InputBuilder],
) -> None:
    builder = make_builder(pixel_cache_bytes=2 * 96 * 96 * 3)
    data = [encode(noise(96, 96, seed=seed), "PNG") for seed in range(3)]

    def pixels(index: int) -> Any:
        return builder.build(("?", data[index])).images[0].pixels

    first, second = pixels(0), pixels(1)
    assert pixels(0) is first  # used again, so the second is the oldest now
    pixels(2)
    assert pixels(0) is first
    assert pixels(1) is not second


# No id below these is that of a text: <pad>, <s>, </s>, <image>.
BOS, IMAGE, FIRST_OF_TEXT = 1, 3, 4


@pytest.mark.parametrize(
    "caption",
    ["<image>", "</s>", "<s>", "a <image> and </s><pad>", "<imag<image>e>", "\U000f0000<image>"],
)
def test_special_token_spelled_in_a_caption_is_plain_text(
    caption: str, builder: InputBuilder
) -> None:
    prepared = builder.build((caption, PICTURE))
    assert _special_ids(prepared) == [BOS] + [IMAGE] * NUM_PATCHES
    text = builder.tokenizer.decode(
        [token_id for token_id in prepared.token_ids if token_id != IMAGE],
        skip_special_tokens=False,
    )
    assert text == f"<s>USER: \n{caption} ASSISTANT:"


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<image>", "</s>", "<", "/s>", "<im", "age>", "\U000f0000", "\n", "é"]),
        max_size=6,
    ),
    num_images=st.integers(0, 2),
)
@example(pieces=["</", "s>"], num_images=0)
@example(pieces=["<im", "age>"], num_images=1)
def test_parts_that_spell_a_special_token_together_are_plain_text(
    pieces: list[str], num_images: int, builder: InputBuilder
) -> None:
    prepared = builder.build([_turn(*pieces, *[PICTURE] * num_images)])
    assert _special_ids(prepared) == [BOS] + [IMAGE] * (NUM_PATCHES * num_images)


@pytest.mark.parametrize(
    "prompt",
    [
        "half a character \ud800",
        "<image> and \udfff",
        ("\ud800", PICTURE),
        [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
    ],
    ids=["text", "with a token", "with an image", "part"],
)
def test_text_that_is_no_unicode_is_refused(prompt: Any, builder: InputBuilder) -> None:
    with pytest.raises(InvalidRequestError):
        builder.build(prompt)


@pytest.mark.parametrize("template", ["no place for an image", "{{ '<image><image>' }}"])
def test_template_that_does_not_place_each_image_once_is_refused(
    template: str, make_builder: Callable[..., InputBuilder], checkpoint: Path, tmp_path: Path
) -> None:
    folder = _changed(checkpoint, tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRequestError, match="for 1 images"):
        make_builder(folder=folder).build(("What is it?", PICTURE))


def test_image_that_cannot_be_had_is_told_by_the_fetcher(
    make_builder: Callable[..., InputBuilder],
) -> None:
    def fetch(source: Any) -> bytes:
        raise MediaFetchError(f"{source} is gone")

    with pytest.raises(MediaFetchError, match=r"scene.png is gone"):
        make_builder(fetch).build(("What is it?", "scene.png"))


def test_image_above_the_limit_is_refused(make_builder: Callable[..., InputBuilder]) -> None:
    builder = make_builder(max_image_pixels=9_999)
    assert builder.build(("?", encode(noise(99, 101), "PNG"))).images
    with pytest.raises(ImageTooLargeError, match="9,999"):
        builder.build(("?", encode(noise(100, 100), "PNG")))


def _closed() -> Image.Image:
    image = _file(1)
    image.close()
    return image


@pytest.mark.parametrize(
    "make_image",
    [
        pytest.param(
            lambda: Image.open(io.BytesIO(encode(noise(200, 200), "JPEG")[:5_000])), id="truncated"
        ),
        pytest.param(lambda: Image.open(io.BytesIO(png_that_claims(10, 10))), id="no pixels"),
        pytest.param(_closed, id="closed"),
        pytest.param(lambda: Image.new("RGB", (0, 5)), id="no width"),
        pytest.param(lambda: Image.new("RGB", (5, 0)), id="no height"),
        pytest.param(lambda: Image.new("La", (5, 5)), id="no way to RGB"),
    ],
)
def test_broken_picture_in_hand_is_an_error_of_its_request(
    make_image: Callable[[], Image.Image], builder: InputBuilder
) -> None:
    with pytest.raises(MediaError):
        builder.build(("What is it?", make_image()))


@pytest.mark.parametrize("prompt", [None, ("a", None), ("a", [b"no image"]), ("a", "no/such.png")])
def test_whatever_is_wrong_with_a_prompt_is_a_request_error(
    prompt: Any, builder: InputBuilder
) -> None:
    with pytest.raises(RequestError):
        builder.build(prompt)


def test_processor_that_does_not_fit_the_vision_tower_is_the_models_fault(
    make_builder: Callable[..., InputBuilder],
) -> None:
    with pytest.raises(ModelError, match="112 x 112"):
        make_builder(side=112)


def test_threads_prepare_what_one_prepares(make_builder: Callable[..., InputBuilder]) -> None:
    data = [encode(noise(100 + index, 99), "PNG") for index in range(4)]
    prompts = [(f"</s> {index}", [data[index % 4], data[index % 3]]) for index in range(48)]
    one, many = make_builder(), make_builder()
    expected = [_comparable(one.build(prompt)) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(many.build, prompts))
    assert [_comparable(item) for item in prepared] == expected


def test_picture_opened_once_is_read_whole_by_threads_that_share_it(
    make_builder: Callable[..., InputBuilder],
) -> None:
    data = encode(noise(1_000, 1_000), "JPEG")
    expected = make_builder().build(("?", Image.open(io.BytesIO(data))))
    builder, shared = make_builder(), Image.open(io.BytesIO(data))  # nothing is decoded yet
    with ThreadPoolExecutor(8) as pool:
        for prepared in pool.map(builder.build, [("?", shared)] * 8):
            assert _comparable(prepared) == _comparable(expected)


def _special_ids(prepared: PreparedInput) -> list[int]:
    return [token_id for token_id in prepared.token_ids if token_id < FIRST_OF_TEXT]


def _comparable(prepared: PreparedInput) -> Any:
    images = [(i.content_hash, i.offset, i.num_tokens, i.pixels.tobytes()) for i in prepared.images]
    return prepared.token_ids, images


def _changed(
    checkpoint: Path, folder: Path, change: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Copy a checkpoint, with its image processor changed."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    if change:
        change(config["image_processor"])
    path.write_text(json.dumps(config))
    return folder
