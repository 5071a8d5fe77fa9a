"""`load_image`, `encode_image_base64`, `load_video`: what is there, or an error; no dummies."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.inputs.pictures import encode, noise
from tests.engine.vl.web import Web, answer, redirect, web
from vlmflow_engine import GenerationConfig, PytorchEngineConfig, pipeline
from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageTruncatedError,
    MediaError,
    MediaFetchError,
)
from vlmflow_engine.vl import (
    MediaFetcher,
    encode_image_base64,
    load_image,
    load_image_from_url,
    load_video,
)

PICTURE = noise(40, 30)
PNG = encode(PICTURE, "PNG")
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as server:
        server.routes["/a.png"] = answer(PNG)
        yield server


def on_loopback(**options: Any) -> MediaFetcher:
    """A fetcher for which 127.0.0.1, and nothing else, is the public internet."""
    return MediaFetcher(is_allowed_address=lambda address: address == "127.0.0.1", **options)


@pytest.mark.parametrize("form", ["str", "path", "file URL", "data URL", "bytes", "picture"])
def test_an_image_is_loaded_from_wherever_it_is(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    forms: dict[str, Any] = {
        "str": str(path),
        "path": path,
        "file URL": path.as_uri(),
        "data URL": URL,
        "bytes": PNG,
        "picture": PICTURE,
    }
    image = load_image(forms[form])
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))


def test_an_image_is_loaded_from_the_web(server: Web) -> None:
    image = load_image(f"{server.url}/a.png?token=1", fetch=on_loopback())
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))
    assert "mozilla" in server.requests[0].lower()


def test_the_older_name_loads_urls() -> None:
    image = load_image_from_url(URL)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))
    with pytest.raises(MediaFetchError, match="load_image takes paths"):
        load_image_from_url("a.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_of_any_mode_is_rgb(mode: str) -> None:
    picture = (
        Image.new("L", (8, 6), 255).convert(mode) if mode != "I;16" else Image.new(mode, (8, 6))
    )
    assert (load_image(picture).mode, load_image(picture).size) == ("RGB", (8, 6))


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_an_image_goes_through_base64_and_back(form: str) -> None:
    text = encode_image_base64(PICTURE, form)
    raw = base64.b64decode(text, validate=True)
    assert Image.open(io.BytesIO(raw)).format == form
    image = load_image(f"data:image/{form.lower()};base64,{text}")
    assert image.size == PICTURE.size
    if form in ("PNG", "BMP"):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))


def test_base64_is_made_of_a_path_or_url_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    assert (
        encode_image_base64(str(path)) == encode_image_base64(URL) == encode_image_base64(PICTURE)
    )


JPEG = encode(PICTURE, "JPEG")
UNREADABLE: dict[str, tuple[Any, type[MediaError]]] = {
    "a path that leads nowhere": ("/nowhere/a.png", MediaFetchError),
    "a folder": ("/", MediaFetchError),
    "an empty text": ("", MediaFetchError),
    "nothing at all": (None, MediaFetchError),
    "a number": (5, MediaFetchError),
    "no bytes": (b"", MediaError),
    "bytes that are no image": (b"these are no pixels", ImageCorruptError),
    "half a PNG": (PNG[: len(PNG) // 2], ImageTruncatedError),
    "half a JPEG": (JPEG[: len(JPEG) // 2], ImageTruncatedError),
    "a broken PNG": (PNG[:60] + b"\0" * 40 + PNG[100:], ImageCorruptError),
    "a data URL without base64": ("data:image/png,abc", MediaFetchError),
    "a data URL without a comma": ("data:image/png;base64", MediaFetchError),
    "a data URL of other letters": ("data:image/png;base64,???", MediaFetchError),
    "a scheme that is not fetched": ("ftp://example.com/a.png", MediaFetchError),
    "a file of another host": ("file://example.com/a.png", MediaFetchError),
    "a URL without a host": ("http:///a.png", MediaFetchError),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_loaded_is_an_error_and_never_another_image(name: str) -> None:
    source, error = UNREADABLE[name]
    with pytest.raises(error) as caught:
        load_image(source)
    assert str(caught.value)


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "204 No Content"])
def test_a_server_that_has_no_image_is_an_error(status: str, server: Web) -> None:
    server.routes["/b.png"] = answer(status=status)
    with pytest.raises(MediaFetchError, match=status[:3]):
        load_image(f"{server.url}/b.png", fetch=on_loopback())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
    ],
)
def test_this_machine_and_its_network_are_never_fetched_from(host: str) -> None:
    with pytest.raises(MediaFetchError):
        load_image(f"http://{host}:1/a.png")


@pytest.mark.parametrize(
    "url", ["http://me:secret@example.com/a.png", "http://example.com\\@127.0.0.1/a.png"]
)
def test_a_url_that_hides_its_host_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(MediaFetchError) as caught:
        load_image(url)
    assert "secret" not in str(caught.value)


def test_three_redirects_are_followed_and_no_more(server: Web) -> None:
    for number in range(1, 5):
        server.routes[f"/{number}"] = redirect(f"/{number - 1}")
    server.routes["/0"] = answer(PNG)
    assert load_image(f"{server.url}/3", fetch=on_loopback()).size == PICTURE.size
    with pytest.raises(MediaFetchError, match="3 redirects"):
        load_image(f"{server.url}/4", fetch=on_loopback())


@pytest.mark.parametrize("location", ["http://127.0.0.2/a.png", "file:///etc/hosts", "ftp://a/b"])
def test_a_redirect_leads_nowhere_that_a_url_may_not(location: str, server: Web) -> None:
    server.routes["/b.png"] = redirect(location)
    with pytest.raises(MediaFetchError):
        load_image(f"{server.url}/b.png", fetch=on_loopback())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("domains", "is_loaded"), [(["127.0.0.1"], True), (["a.org"], False), ([], False)]
)
def test_only_the_hosts_that_are_allowed_are_asked(
    domains: list[str], is_loaded: bool, server: Web
) -> None:
    fetch = on_loopback(allowed_media_domains=domains)
    if is_loaded:
        assert load_image(f"{server.url}/a.png", fetch=fetch).size == PICTURE.size
    else:
        with pytest.raises(MediaFetchError, match="allowed_media_domains"):
            load_image(f"{server.url}/a.png", fetch=fetch)
    assert len(server.requests) == is_loaded


def test_a_pipelines_allowed_hosts_hold_for_prompts(tiny_llava: Path, server: Web) -> None:
    config = PytorchEngineConfig(device_type="cpu", num_preprocess_workers=0)
    short = GenerationConfig(max_new_tokens=2, ignore_eos=True)
    domains = ["example.com"]
    with pipeline(str(tiny_llava), config, allowed_media_domains=domains) as pipe:
        refused, own = pipe([("x", f"{server.url}/a.png"), ("x", URL)], short)
    assert refused.error_code == "preprocess_failed"
    assert "allowed_media_domains" in refused.error_message
    assert own.error_code is None and server.requests == []


def test_the_time_limit_of_lmdeploys_variable_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MediaFetcher().timeout == 10
    monkeypatch.setenv("LMDEPLOY_IMAGE_FETCH_TIMEOUT", "3.5")
    assert MediaFetcher().timeout == 3.5


FRAMES = [noise(24, 16, seed=number) for number in range(20)]


def video(num_frames: int, kind: str = "WEBP", milliseconds: int = 100) -> bytes:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return encode(
        FRAMES[0],
        kind,
        save_all=True,
        append_images=FRAMES[1:num_frames],
        duration=milliseconds,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({}, list(range(20))),
        ({"num_frames": 4}, [0, 6, 12, 19]),
        ({"num_frames": 1}, [0]),
        ({"num_frames": 100}, list(range(20))),
        ({"num_frames": -1}, list(range(20))),
        ({"fps": 2}, [0, 6, 12, 19]),
        ({"num_frames": 3, "fps": 5}, [0, 9, 19]),
        ({"fps": 0.01}, [0]),
    ],
)
def test_frames_of_a_video_are_spread_evenly(options: dict[str, Any], indices: list[int]) -> None:
    pixels, known = load_video(video(20), **options)
    assert known["frames_indices"] == indices
    assert pixels.shape == (len(indices), 16, 24, 3) and pixels.dtype == np.uint8
    for frame, index in zip(pixels, indices, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(FRAMES[index]))


def test_what_is_known_of_a_video_has_lmdeploys_names(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(video(20, milliseconds=250))
    _, known = load_video(str(path), num_frames=2)
    assert (known["total_num_frames"], known["fps"], known["duration"]) == (20, 4.0, 5.0)
    assert set(known) == {"total_num_frames", "fps", "duration", "video_backend", "frames_indices"}


def test_a_video_of_32_frames_at_most_by_default() -> None:
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(50)]
    data = encode(images[0], "WEBP", save_all=True, append_images=images[1:], lossless=True)
    pixels, known = load_video(data)
    assert len(pixels) == len(known["frames_indices"]) == 32


def test_frames_in_a_data_url_are_two_a_second() -> None:
    parts = [base64.b64encode(encode(frame, "JPEG")).decode() for frame in FRAMES[:6]]
    pixels, known = load_video(f"data:video/jpeg;base64,{','.join(parts)}", num_frames=3)
    assert pixels.shape == (3, 16, 24, 3)
    assert (known["total_num_frames"], known["fps"], known["duration"]) == (6, 2.0, 3.0)
    assert known["frames_indices"] == [0, 2, 5]


@pytest.mark.parametrize("source", ["/nowhere/a.mp4", b"no video", video(5)[:200]])
def test_a_video_that_cannot_be_read_is_an_error(source: Any) -> None:
    with pytest.raises(MediaError):
        load_video(source)
