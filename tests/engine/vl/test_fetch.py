"""Images from files and data URLs; whatever would reach further is refused without a word of it."""

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmflow_engine.errors import MediaError, MediaFetchError
from vlmflow_engine.vl import fetch_image, load_image
from vlmflow_engine.vl.fetch import MAX_IMAGE_BYTES

PICTURE = Image.radial_gradient("L").convert("RGB")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A picture in a file whose name has to be escaped in a URL."""
    path = tmp_path / "a picture, 50% & \u00e9#1?.png"
    PICTURE.save(path)
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "name": str,
    "file URL": Path.as_uri,
    "file URL of localhost": lambda path: path.as_uri().replace("file://", "file://localhost"),
    "FILE URL": lambda path: path.as_uri().replace("file", "FILE", 1),
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "data URL": lambda path: _data_url(path, "data:image/png;base64"),
    "data URL without a type": lambda path: _data_url(path, "data:;base64"),
    "data URL with a parameter": lambda path: _data_url(path, "data:image/png;name=a.png;base64"),
}


@pytest.mark.parametrize("form", FORMS)
def test_image_is_fetched_in_every_form(form: str, path: Path) -> None:
    assert fetch_image(FORMS[form](path)) == path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_image_is_loaded_in_every_form(form: str, path: Path) -> None:
    image = load_image(FORMS[form](path))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))


def test_picture_in_hand_is_taken_as_it_is() -> None:
    picture = PICTURE.convert("RGBA")
    assert fetch_image(picture) is picture
    assert load_image(picture).mode == "RGB"


@pytest.mark.parametrize(
    "url",
    [
        *("http://host/a.png?sig=SECRET", "https://user:SECRET@host/a.png"),
        *("HTTPS://host/a.png?sig=SECRET", "s3://bucket/a.png?sig=SECRET"),
        *("gs://bucket/SECRET", "ftp://user:SECRET@host/a.png"),
        *(" https://host/a.png?sig=SECRET", "\nhttps://host/a.png?sig=SECRET"),
        *("abfss://store@host/a.png?sig=SECRET", "hf://SECRET@owner/name/a.png"),
        *("a-scheme-of-many-letters://host/a.png?sig=SECRET", "http:host/a.png?sig=SECRET"),
    ],
)
def test_url_of_the_network_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(MediaFetchError) as caught:
        fetch_image(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 5, ["a.png"], {"url": "a.png"}, object()], ids=repr)
def test_what_is_no_image_is_refused_by_its_type(source: Any) -> None:
    with pytest.raises(MediaFetchError, match=type(source).__name__):
        fetch_image(source)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("missing.png", "No such file"),
        ("", "directory"),
        ("a\0b.png", "null"),
        ("\ud800.png", "surrogate"),
        ("picture.png/more", "Not a directory"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_the_reason(
    name: str, what: str, tmp_path: Path
) -> None:
    PICTURE.save(tmp_path / "picture.png")
    with pytest.raises(MediaFetchError, match=what) as caught:
        fetch_image(f"{tmp_path}/{name}")
    assert str(tmp_path) in str(caught.value)


def test_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.touch()
    os.truncate(path, MAX_IMAGE_BYTES + 1)  # a hole, which takes no space
    with pytest.raises(MediaFetchError, match=f"{MAX_IMAGE_BYTES + 1:,} bytes"):
        fetch_image(path)


@pytest.mark.parametrize("form", [os.devnull, Path(os.devnull), f"file://{os.devnull}"], ids=repr)
def test_device_is_not_read(form: Any) -> None:
    # Its size is zero whatever it gives: /dev/zero would fill the memory, a pipe would wait.
    with pytest.raises(MediaFetchError):
        fetch_image(form)


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:image/png", "data:image/png,raw", "data:image/png;base64"),
        *("data:image/png;base64,@@@@", "data:image/png;base64,YWJ", "data:;base64,\u00e9\u00e9"),
        *("file://[/a.png", "file:///no/such/file.png"),
    ],
)
def test_broken_url_is_refused(url: str) -> None:
    with pytest.raises(MediaFetchError):
        fetch_image(url)


@pytest.mark.parametrize(
    "source",
    [
        *("x" * 100_000, "iVBORw0KGgo" * 10_000, Path("y" * 100_000)),
        *(
            "data:" + "x" * 100_000,
            f"data:{'x' * 100_000};base64,@",
            "data:;base64," + "@" * 99_999,
        ),
        f"file:///{'x' * 100_000}",
    ],
    ids=lambda source: str(source)[:20],
)
def test_message_about_a_long_source_is_short(source: Any) -> None:
    with pytest.raises(MediaFetchError) as caught:
        fetch_image(source)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "make_source",
    [
        pytest.param(lambda data: b"", id="nothing"),
        pytest.param(lambda data: b"no image", id="text"),
        pytest.param(lambda data: data[:-100], id="truncated"),
        pytest.param(lambda data: Image.open(io.BytesIO(data[:-100])), id="truncated, in hand"),
        pytest.param(lambda data: "data:;base64,", id="empty data URL"),
    ],
)
def test_image_that_cannot_be_loaded_is_an_error_and_no_other_image(
    make_source: Callable[[bytes], Any], path: Path
) -> None:
    with pytest.raises(MediaError):
        load_image(make_source(path.read_bytes()))


def _data_url(path: Path, head: str) -> str:
    return f"{head},{base64.b64encode(path.read_bytes()).decode()}"
