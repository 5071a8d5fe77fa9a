"""What is packed for a worker is unpacked as the same thing."""

import enum
import io
from collections import ChainMap, OrderedDict
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.engine.inputs.fetchers import TeapotError
from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine import errors
from vlmflow_engine.errors import ImageCorruptError, InvalidRequestError, RequestError
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput
from vlmflow_engine.inputs.worker_frames import (
    BuilderSpec,
    PackedPrompt,
    read_result,
    result_frame,
)

REQUEST_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
]


class Role(enum.StrEnum):
    USER = "user"


class Named(str):
    """A text with a voice of its own."""

    def __str__(self) -> str:
        return "never"


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (("a", [b"bytes", Path("/x y/ü.png")]), ("a", [b"bytes", Path("/x y/ü.png")])),
        ((("a", ()), ("b",)), (("a", ()), ("b",))),
        ({"role": Role.USER, "n": Number.ONE}, {"role": "user", "n": 1}),
        (Named("as it is"), "as it is"),
        (np.float64(0.5), 0.5),
        (PurePosixPath("a/b"), Path("a/b")),
        (OrderedDict(a=(1,)), {"a": (1,)}),
        (MappingProxyType({"a": ChainMap({"b": 2})}), {"a": {"b": 2}}),
        ({1: "a", (2, "b"): None}, {1: "a", (2, "b"): None}),
        ("half a character \ud800", "half a character \ud800"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (Path("/not utf-8 \udcff"), Path("/not utf-8 \udcff")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompt_arrives_as_it_was(prompt: Any, expected: Any) -> None:
    arrived = PackedPrompt.pack(prompt).unpack()
    assert arrived == expected
    assert type(arrived) is type(expected)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 9), inner)
    ),
    max_leaves=12,
)


@given(prompt=_PLAIN)
def test_any_nesting_arrives_as_it_was(prompt: Any) -> None:
    assert PackedPrompt.pack(prompt).unpack() == prompt


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "lazy"])
def test_picture_gives_the_same_input_on_both_sides(builder: InputBuilder, mode: str) -> None:
    image = noise(90, 70)
    image = Image.open(io.BytesIO(encode(image, "JPEG"))) if mode == "lazy" else image.convert(mode)
    arrived = PackedPrompt.pack(("?", image)).unpack()
    here, there = builder.build(("?", image)).images[0], builder.build(arrived).images[0]
    assert here.content_hash == there.content_hash
    np.testing.assert_array_equal(here.pixels, there.pixels)


def test_pictures_keep_their_places_and_are_counted() -> None:
    first, second = noise(9, 8, seed=1), noise(7, 6, seed=2)
    packed = PackedPrompt.pack(("?", [second, (first, second)]))
    assert packed.num_bytes == len(packed.body) + 3 * (7 * 6 + 9 * 8 + 7 * 6)
    _, [one, (two, three)] = packed.unpack()
    assert [image.tobytes() for image in (one, two, three)] == [
        image.tobytes() for image in (second, first, second)
    ]


def _endless() -> list[Any]:
    prompt: list[Any] = []
    prompt.append(prompt)
    return prompt


@pytest.mark.parametrize("prompt", [object(), 1 << 70, _endless(), ("?", np.zeros((3, 3, 3)))])
def test_what_cannot_be_sent_is_the_prompts_error(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError):
        PackedPrompt.pack(prompt)


def test_broken_picture_in_hand_is_the_prompts_error() -> None:
    with pytest.raises(ImageCorruptError):
        PackedPrompt.pack(("?", Image.open(io.BytesIO(encode(noise(99, 99), "JPEG")[:900]))))


def test_result_arrives_as_it_was_and_equal_pixels_are_kept_once(builder: InputBuilder) -> None:
    prepared = builder.build(("both", [noise(80, 90, seed=seed) for seed in range(2)]))
    known: dict[bytes, Any] = {}
    arrived = [read_result(_wired(result_frame(7, prepared)), known) for _ in range(2)]
    for result in arrived:
        assert isinstance(result, PreparedInput)
        assert result.token_ids == prepared.token_ids
        for image, expected in zip(result.images, prepared.images, strict=True):
            assert image.content_hash == expected.content_hash
            assert (image.offset, image.num_tokens) == (expected.offset, expected.num_tokens)
            np.testing.assert_array_equal(image.pixels, expected.pixels)
            assert image.pixels is known[image.content_hash]


@pytest.mark.parametrize("kind", REQUEST_ERRORS, ids=lambda kind: kind.__name__)
def test_error_arrives_as_its_own_class(kind: type[RequestError]) -> None:
    error = read_result(_wired(result_frame(1, kind("a sentence"))), {})
    assert type(error) is kind
    assert str(error) == "a sentence"


def test_error_of_a_fetchers_own_class_arrives_as_the_one_above_it() -> None:
    error = read_result(_wired(result_frame(1, TeapotError("short and stout"))), {})
    assert type(error) is errors.MediaFetchError
    assert str(error) == "short and stout"


def test_spec_arrives_as_it_was(spec: BuilderSpec) -> None:
    arrived = BuilderSpec.from_frame(_wired(spec.start_frame()))
    assert arrived.start_frame() == spec.start_frame()
    assert arrived.image_format == spec.image_format
    prompt = ("What is it?", noise(50, 60))
    assert arrived.make().build(prompt).token_ids == spec.make().build(prompt).token_ids


def _wired(frame: dict[str, Any]) -> dict[str, Any]:
    arrived: dict[str, Any] = msgpack.unpackb(msgpack.packb(frame))
    return arrived
