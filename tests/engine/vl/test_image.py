"""`load_image` and what stands beside it, as a user of `vlmflow_engine.vl` meets them."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmflow_engine
from tests.engine.inputs.pictures import encode, oriented
from tests.engine.vl.conftest import PICTURE, PNG
from tests.engine.vl.web import Web
from vlmflow_engine import vl
from vlmflow_engine.errors import ImageTooLargeError, MediaFetchError
from vlmflow_engine.vl import (
    MediaFetcher,
    encode_image_base64,
    load_image,
    load_image_from_url,
)
from vlmflow_engine.vl.constants import IMAGE_TOKEN


def pixels(image: Image.Image) -> Any:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_picture_of_a_server_is_loaded(server: Web) -> None:
    fetch = MediaFetcher(is_allowed_address=lambda address: address == "127.0.0.1")
    image = load_image(f"{server.url}/a.png", fetch=fetch)
    np.testing.assert_array_equal(pixels(image), np.asarray(PICTURE))


def test_options_of_a_fetcher_hold_for_what_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ImageTooLargeError):
        load_image(_data_url(), fetch=MediaFetcher(max_image_bytes=100))


def test_url_is_loaded_from_a_url(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for url in ((tmp_path / "a.png").as_uri(), _data_url(), f" {_data_url().replace('d', 'D', 1)}"):
        np.testing.assert_array_equal(pixels(load_image_from_url(url)), np.asarray(PICTURE))


@pytest.mark.parametrize("source", ["a.png", "/a.png", "", PNG, None, "s3://b/SECRET", "httpx://h"])
def test_url_is_nothing_else(source: Any) -> None:
    with pytest.raises(MediaFetchError, match="a URL starts with") as caught:
        load_image_from_url(source)
    assert "SECRET" not in str(caught.value)


def test_url_of_this_machine_is_refused_by_both(server: Web) -> None:
    for load in (load_image, load_image_from_url, encode_image_base64):
        with pytest.raises(MediaFetchError, match="public addresses only"):
            load(f"{server.url}/a.png")


@pytest.mark.parametrize("form", ["path", "bytes", "picture", "data URL"])
def test_base64_of_an_image_is_that_of_its_file(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    forms: dict[str, Any] = {
        "path": tmp_path / "a.png",
        "bytes": PNG,
        "picture": PICTURE,
        "data URL": _data_url(),
    }
    text = encode_image_base64(forms[form])
    file = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert file.format == "PNG"
    np.testing.assert_array_equal(pixels(file), np.asarray(PICTURE))
    np.testing.assert_array_equal(pixels(load_image(f"data:;base64,{text}")), np.asarray(PICTURE))


def test_base64_is_of_what_a_model_would_see() -> None:
    turned = encode(PICTURE.convert("RGB"), "PNG", exif=oriented(6))
    seen = Image.open(io.BytesIO(base64.b64decode(encode_image_base64(turned, format="BMP"))))
    assert (seen.format, seen.size) == ("BMP", PICTURE.size[::-1])
    glass = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    jpeg = Image.open(io.BytesIO(base64.b64decode(encode_image_base64(glass, "JPEG"))))
    assert jpeg.getpixel((0, 0)) == (255, 255, 255)


def test_base64_in_a_format_that_nobody_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="'XYZ'"):
        encode_image_base64(PICTURE, "XYZ")


def test_pipeline_stands_here_too_and_costs_no_torch() -> None:
    assert vl.pipeline is vlmflow_engine.pipeline
    with pytest.raises(AttributeError, match="nothing"):
        vl.nothing  # noqa: B018
    code = (
        "import sys; sys.modules['torch'] = sys.modules['av'] = None; "
        "from vlmflow_engine.vl import *; from vlmflow_engine.vl.constants import IMAGE_TOKEN; "
        "assert callable(pipeline) and callable(load_video)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_token_is_that_of_lmdeploy() -> None:
    assert IMAGE_TOKEN == "<IMAGE_TOKEN>"


def _data_url() -> str:
    return f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def test_an_empty_text_is_no_folder():
    for text in ("", "  "):
        with pytest.raises(MediaFetchError, match="an image's path or URL is empty"):
            load_image(text)
