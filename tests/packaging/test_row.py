"""A row's cells become a prompt of the engine, or one sentence."""

import base64

import pytest

from vlmflow.packaging.row import RowError, prompt_of

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.mark.parametrize("nothing", [None, float("nan"), "", []])
def test_an_image_may_be_left_out(nothing):
    assert prompt_of({"prompt": "Hi", "image": nothing}) == "Hi"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PNG, [PNG]),
        (bytearray(PNG), [PNG]),
        (base64.b64encode(PNG).decode(), [PNG]),
        (base64.encodebytes(PNG).decode(), [PNG]),
        ("https://host/a.png", ["https://host/a.png"]),
        ("data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
        ([PNG, "http://host/b"], [PNG, "http://host/b"]),
    ],
)
def test_bytes_base64_and_urls_are_images(image, expected):
    assert prompt_of({"prompt": "What?", "image": image}) == ("What?", expected)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": None}, "prompt must be a text, got None"),
        ({"prompt": " "}, "prompt must be a text"),
        ({"prompt": "x", "image": 7}, "image must be bytes or a text, got 7"),
        ({"prompt": "x", "image": "s3://bucket/a.png"}, "reads no s3: URI"),
        ({"prompt": "x", "image": "file:///etc/passwd"}, "reads no file: URI"),
        ({"prompt": "x", "image": "/etc/ssl/private/key.pem"}, "reads no files of its machine"),
        ({"prompt": "x", "image": "etc/passwd"}, "reads no files of its machine"),
        ({"prompt": "x", "image": "AAAAAAAAAAAAAAAAA"}, "neither base64 nor a URL"),
        ({"prompt": "x", "image": [PNG, "a.png"]}, "neither base64 nor a URL"),
    ],
)
def test_anything_else_is_refused_by_name(row, sentence):
    with pytest.raises(RowError, match=sentence):
        prompt_of(row)
