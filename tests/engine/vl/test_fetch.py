"""Images from files, data URLs and servers; whatever would reach further is refused."""

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.vl.conftest import PNG
from tests.engine.vl.web import Web, answer
from vlmflow_engine.errors import ConfigError, ImageTooLargeError, MediaError, MediaFetchError
from vlmflow_engine.vl import MediaFetcher, fetch_image, load_image
from vlmflow_engine.vl.fetch import MAX_IMAGE_BYTES, TIMEOUT_VARIABLES

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
        *("https://user:SECRET@host/a.png", "HTTPS://user:SECRET@host/a.png"),
        *("s3://bucket/a.png?sig=SECRET", "gs://bucket/SECRET", "ftp://user:SECRET@host/a.png"),
        *(" s3://host/a.png?sig=SECRET", "\nhttps://user:SECRET@host/a.png"),
        *("file://user:SECRET@host/a.png", "file://[SECRET/a.png"),
        *("abfss://store@host/a.png?sig=SECRET", "hf://SECRET@owner/name/a.png"),
        *("a-scheme-of-many-letters://host/a.png?sig=SECRET", "http:host/a.png?sig=SECRET"),
    ],
)
def test_url_of_anything_else_is_refused_and_not_repeated(url: str) -> None:
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
    with pytest.raises(ImageTooLargeError, match=f"{MAX_IMAGE_BYTES + 1:,} bytes"):
        fetch_image(path)


@pytest.mark.parametrize("num_bytes", [98, 99, 100])
def test_limit_of_bytes_may_be_another(num_bytes: int, tmp_path: Path, server: Web) -> None:
    data = bytes(num_bytes)
    (tmp_path / "a").write_bytes(data)
    server.routes["/a"] = answer(data)
    fetch = MediaFetcher(max_image_bytes=99, is_allowed_address=is_loopback)
    url = f"data:;base64,{base64.b64encode(data).decode()}"
    for source in (tmp_path / "a", (tmp_path / "a").as_uri(), url, f"{server.url}/a"):
        if num_bytes <= 99:
            assert fetch(source) == data
        else:
            with pytest.raises(ImageTooLargeError, match="99"):
                fetch(source)


@pytest.mark.parametrize("form", [os.devnull, Path(os.devnull), f"file://{os.devnull}"], ids=repr)
def test_device_is_not_read(form: Any) -> None:
    # Its size is zero whatever it gives: /dev/zero would fill the memory, a pipe would wait.
    with pytest.raises(MediaFetchError):
        fetch_image(form)


def test_device_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    # To some that is a command: a watchdog is started, a tape wound back.
    opened: list[Any] = []
    monkeypatch.setattr(os, "open", lambda path, *_: opened.append(path))
    with pytest.raises(MediaFetchError, match="is a device"):
        fetch_image(os.devnull)
    assert not opened


def test_file_that_hides_its_size_is_read_up_to_the_limit() -> None:
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(ImageTooLargeError, match="has 100 bytes, allowed 99"):
        MediaFetcher(max_image_bytes=99)("/proc/self/status")


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


def test_picture_is_fetched_from_a_server(server: Web) -> None:
    fetch = MediaFetcher(is_allowed_address=is_loopback)
    for url in (
        f"{server.url}/a.png?sig=1",
        f" {server.url}/a.png\n",
        f"HTTP{server.url[4:]}/a.png",
    ):
        assert fetch(url) == PNG


def test_server_in_the_network_of_the_engine_is_refused_by_default(server: Web) -> None:
    for fetch in (fetch_image, MediaFetcher(), MediaFetcher(allowed_media_domains=["127.0.0.1"])):
        with pytest.raises(MediaFetchError, match="public addresses only"):
            fetch(f"{server.url}/a.png")
    assert server.num_connections == 0


def test_only_the_named_hosts_are_asked(server: Web) -> None:
    url = f"{server.url}/a.png?sig=SECRET"
    for domains in (["127.0.0.1"], ("other.example", "127.0.0.1")):
        fetch = MediaFetcher(allowed_media_domains=domains, is_allowed_address=is_loopback)
        assert fetch(url) == PNG
    for domains in ([], ["localhost"], ["27.0.0.1"], ["B\u00fccher.example"]):
        fetch = MediaFetcher(allowed_media_domains=domains, is_allowed_address=is_loopback)
        with pytest.raises(MediaFetchError, match="'127.0.0.1' is not among allowed_media_domains"):
            fetch(url)
    assert server.num_connections == 2


@pytest.mark.parametrize(
    "domains",
    ["example.com", ["https://example.com"], ["example.com:80"], ["*.example.com"], [""], [5], 5],
    ids=repr,
)
def test_hosts_that_are_none_are_refused_at_once(domains: Any) -> None:
    with pytest.raises(ConfigError, match="allowed_media_domains"):
        MediaFetcher(allowed_media_domains=domains)


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 10),
        ({"LMDEPLOY_IMAGE_FETCH_TIMEOUT": "3"}, 3),
        ({"LMDEPLOY_IMAGE_FETCH_TIMEOUT": "3", "VLMFLOW_IMAGE_FETCH_TIMEOUT": "2.5"}, 2.5),
        ({"LMDEPLOY_IMAGE_FETCH_TIMEOUT": "3", "VLMFLOW_IMAGE_FETCH_TIMEOUT": ""}, 3),
    ],
)
def test_time_limit_is_read_from_the_environment(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TIMEOUT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert MediaFetcher().timeout == seconds
    assert MediaFetcher(timeout=7).timeout == 7


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_time_limit_that_is_none_is_refused_by_its_name(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"timeout must be .* got '?{value}"):
        MediaFetcher(timeout=value)  # type: ignore[arg-type]
    monkeypatch.setenv("LMDEPLOY_IMAGE_FETCH_TIMEOUT", value)
    monkeypatch.delenv("VLMFLOW_IMAGE_FETCH_TIMEOUT", raising=False)
    with pytest.raises(ConfigError, match="LMDEPLOY_IMAGE_FETCH_TIMEOUT"):
        MediaFetcher()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """allowed/ and outside/ with a picture in each, and links between them."""
    for name in ("allowed", "outside", "allowed-too"):
        (tmp_path / name).mkdir()
        PICTURE.save(tmp_path / name / "a.png")
    (tmp_path / "allowed" / "inside.png").symlink_to("a.png")
    (tmp_path / "allowed" / "escape.png").symlink_to(tmp_path / "outside" / "a.png")
    (tmp_path / "allowed" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(tmp_path / "allowed")
    return tmp_path


@pytest.mark.parametrize("root", ["allowed", "link", "outside/../allowed/"])
def test_files_below_the_allowed_folder_are_read(root: str, folders: Path) -> None:
    fetch = MediaFetcher(allowed_local_media_path=f"{folders}/{root}")
    for name in ("allowed/a.png", "allowed/inside.png", "link/a.png", "outside/../allowed/a.png"):
        assert isinstance(fetch(f"{folders}/{name}"), bytes)
        assert isinstance(fetch(folders / name), bytes)
        assert isinstance(fetch((folders / name).as_uri()), bytes)
    assert fetch(b"in hand") == b"in hand"


@pytest.mark.parametrize(
    "name",
    [
        *("outside/a.png", "allowed/../outside/a.png", "allowed/escape.png", "allowed-too/a.png"),
        *("allowed/folder/a.png", "allowed/folder/missing.png", "missing.png", "allowed/.."),
        *("outside", "link/escape.png", "allowed/../../../../../../../../etc/passwd"),
    ],
)
def test_files_elsewhere_are_refused_whether_they_are_there_or_not(
    name: str, folders: Path
) -> None:
    fetch = MediaFetcher(allowed_local_media_path=folders / "allowed")
    for source in (f"{folders}/{name}", folders / name, f"file://{folders}/{name}"):
        with pytest.raises(MediaFetchError, match="is not below allowed_local_media_path"):
            fetch(source)


def test_escaped_slashes_of_a_file_url_lead_nowhere_else(folders: Path) -> None:
    fetch = MediaFetcher(allowed_local_media_path=folders / "allowed")
    with pytest.raises(MediaFetchError, match="is not below"):
        fetch(f"file://{folders}/allowed/%2e%2e%2foutside%2fa.png")


@pytest.mark.parametrize("folder", ["missing", "a.png"])
def test_allowed_folder_must_be_one(folder: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ConfigError, match="allowed_local_media_path must be a folder"):
        MediaFetcher(allowed_local_media_path=tmp_path / folder)


def is_loopback(address: str) -> bool:
    return address == "127.0.0.1"


def _data_url(path: Path, head: str) -> str:
    return f"{head},{base64.b64encode(path.read_bytes()).decode()}"
