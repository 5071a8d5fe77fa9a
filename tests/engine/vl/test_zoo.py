"""Bad inputs of every kind: each ends in its own error, told without a secret, and soon."""

import base64
import io
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engine.inputs.pictures import encode, noise, png_that_claims
from tests.engine.vl.web import Talk, Web, answer, redirect
from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
    MediaBusyError,
    MediaError,
    MediaFetchError,
    MediaForbiddenError,
    MediaMissingError,
)
from vlmflow_engine.vl import MediaFetcher, load_image

PICTURE = noise(64, 48)
JPEG, PNG, BMP = (encode(PICTURE, kind) for kind in ("JPEG", "PNG", "BMP"))
WEBP, GIF = encode(PICTURE, "WEBP"), encode(PICTURE.convert("P"), "GIF")
FRAMES = [noise(64, 48, seed=seed).convert("P") for seed in range(3)]
ANIMATED = encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, behind the header of a small picture."""
    header = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *chunks, (b"IEND", b""))
    )


def webp_that_claims(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


PIXELS = (b"IDAT", zlib.compress(b"\0" * 25 * 8))

BAD_BYTES: dict[str, tuple[bytes, type[MediaError]]] = {
    "nothing": (b"", ImageCorruptError),
    "one byte": (b"\xff", ImageCorruptError),
    "zeros": (bytes(10_000), ImageCorruptError),
    "text": (b"404 page not found", ImageCorruptError),
    "HTML": (HTML, ImageFormatError),
    "HTML behind blank lines": (b"\n\n  " + HTML, ImageFormatError),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ImageFormatError),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageFormatError),
    "JSON": (b'{"error": "expired"}', ImageCorruptError),
    "PDF": (b"%PDF-1.7\n%%EOF", ImageFormatError),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", ImageCorruptError),
    "zip": (b"PK\3\4" + bytes(100), ImageCorruptError),
    "gzip of a picture": (zlib.compress(PNG), ImageCorruptError),
    "base64 of a picture": (base64.b64encode(PNG), ImageCorruptError),
    "TIFF": (encode(PICTURE, "TIFF"), ImageFormatError),
    "AVIF": (encode(PICTURE, "AVIF"), ImageFormatError),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", ImageFormatError),
    "JPEG 2000": (encode(PICTURE, "JPEG2000"), ImageCorruptError),
    "ICO": (encode(PICTURE, "ICO"), ImageCorruptError),
    "mp4": (b"\0\0\0\x18ftypisom" + bytes(100), ImageFormatError),
    "playlist": (b"#EXTM3U\nfile:///etc/passwd\n", ImageCorruptError),
    "JPEG's start": (JPEG[:3], ImageCorruptError),
    "JPEG's half": (JPEG[: len(JPEG) // 2], ImageTruncatedError),
    "JPEG without its end": (JPEG[:-2], ImageTruncatedError),
    "JPEG's end": (JPEG[len(JPEG) // 2 :], ImageCorruptError),
    "PNG's signature": (PNG[:8], ImageCorruptError),
    "PNG's half": (PNG[: len(PNG) // 2], ImageTruncatedError),
    "PNG without its end": (PNG[:-12], ImageTruncatedError),
    "PNG with a hole": (PNG[:500] + bytes(50) + PNG[550:], ImageCorruptError),
    "PNG sent as text": (PNG.replace(b"\r\n", b"\n"), ImageCorruptError),
    "GIF's half": (GIF[: len(GIF) // 2], ImageTruncatedError),
    "animated GIF's first half frame": (ANIMATED[:1200], ImageTruncatedError),
    "WebP's half": (WEBP[: len(WEBP) // 2], ImageCorruptError),
    "BMP's half": (BMP[: len(BMP) // 2], ImageTruncatedError),
    "PNG of no width": (png_that_claims(0, 10), ImageCorruptError),
    "PNG bomb": (png_that_claims(50_000, 50_000), ImageTooLargeError),
    "wide PNG bomb": (png_that_claims(2**31 - 1, 1), ImageTooLargeError),
    "GIF bomb": (GIF[:6] + b"\xff" * 4 + GIF[10:], ImageTooLargeError),
    "BMP bomb": (
        BMP[:18] + struct.pack("<ii", 2**30, 2**30) + BMP[26:],
        ImageTooLargeError,
    ),
    "WebP bomb": (webp_that_claims(2**24, 200), ImageTooLargeError),
    "square WebP bomb": (webp_that_claims(16_384, 16_384), ImageTooLargeError),
    "JPEG bomb": (
        JPEG[: JPEG.index(b"\xff\xc0") + 5] + b"\xff" * 4 + JPEG[JPEG.index(b"\xff\xc0") + 9 :],
        ImageTooLargeError,
    ),
    "PNG of zeros, packed a thousandfold": (
        encode(Image.new("L", (10_000, 10_000)), "PNG"),
        ImageTooLargeError,
    ),
    "PNG with a text bomb": (
        png((b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), PIXELS),
        ImageCorruptError,
    ),
    "PNG of text alone": (png(*[(b"tEXt", b"a\0b")] * 1_000), ImageCorruptError),
}


@pytest.mark.parametrize("name", BAD_BYTES)
@pytest.mark.parametrize("form", ["bytes", "file", "data URL", "http"])
def test_bytes_that_are_no_image_are_told_alike_wherever_they_come_from(
    name: str, form: str, tmp_path: Path, server: Web
) -> None:
    data, error = BAD_BYTES[name]
    source: Any = data
    if form == "file":
        source = tmp_path / "picture.jpg"
        source.write_bytes(data)
    elif form == "data URL":
        source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    elif form == "http":
        server.routes["/picture.jpg"] = answer(data, Content_Type="image/jpeg")
        source = f"{server.url}/picture.jpg?sig=SECRET"
    check_error(source, error)


GOOD_BYTES: dict[str, bytes] = {
    "animation": ANIMATED,
    "EXIF of 60 KB": encode(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + bytes(60_000)),
    "EXIF of 5 MB": png((b"eXIf", b"MM\0*\0\0\0\x08" + b"\1" * 5_000_000), PIXELS),
    "a web page behind its end": PNG + HTML,
    "comment of 60 KB": encode(PICTURE, "JPEG", comment=b"x" * 60_000),
    "one pixel": encode(PICTURE.crop((0, 0, 1, 1)), "PNG"),
    "one row": encode(PICTURE.crop((0, 0, 64, 1)), "GIF"),
}


@pytest.mark.parametrize("name", GOOD_BYTES)
def test_odd_bytes_that_hold_a_picture_are_loaded(name: str) -> None:
    expected = Image.open(io.BytesIO(GOOD_BYTES[name])).size
    assert load_image(GOOD_BYTES[name]).size == expected


def make_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def make_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    return folder / "s"


def make_loop(folder: Path) -> Path:
    (folder / "loop.png").symlink_to("loop.png")
    return folder / "loop.png"


def make_dangling(folder: Path) -> Path:
    (folder / "link.png").symlink_to("gone.png")
    return folder / "link.png"


BAD_PATHS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda folder: folder / "gone.png",
    "folder": lambda folder: folder,
    "folder of a URL": lambda folder: folder.as_uri(),
    "empty": lambda folder: "",
    "dot": lambda folder: ".",
    "pipe": make_fifo,
    "socket": make_socket,
    "link to itself": make_loop,
    "link to nothing": make_dangling,
    "/dev/zero": lambda folder: "/dev/zero",
    "/dev/zero as URL": lambda folder: "file:///dev/zero",
    "link to /dev/zero": lambda folder: [
        (folder / "z.png").symlink_to("/dev/zero"),
        folder / "z.png",
    ][1],
    "terminal": lambda folder: "/dev/ptmx",
    "nul byte": lambda folder: f"{folder}/a.png\0.jpg",
    "escaped nul byte": lambda folder: f"file://{folder}/a.png%00.jpg",
    "half a character": lambda folder: f"{folder}/\udcff\ud800.png",
    "long name": lambda folder: folder / ("x" * 300),
    "long path": lambda folder: "x/" * 5_000,
    "below a file": lambda folder: f"{__file__}/a.png",
    "another host": lambda folder: "file://host.example/etc/passwd",
    "home": lambda folder: "~/a.png",
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_path_that_is_no_file_is_told(name: str, tmp_path: Path) -> None:
    check_error(BAD_PATHS[name](tmp_path), MediaFetchError)


def test_file_that_must_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # nobody: root may read every file
    try:
        check_error(path, MediaFetchError, "Permission denied")
    finally:
        os.seteuid(user)


def test_file_of_the_kernel_that_holds_no_image_is_not_repeated() -> None:
    # Its size is zero whatever it holds.
    with pytest.raises(ImageCorruptError) as caught:
        load_image("/proc/self/environ")
    assert "PATH" not in str(caught.value)


BAD_URLS = [
    *("data:", "data:,SECRET", "data:image/png;base64", "data:image/png;base64,SECRET!"),
    *("data:image/png;base64,YWJ", "data:image/svg+xml,<svg/>", "data:;base32,AAAA"),
    *("http://", "https://", "http:///a.png", "http://?sig=SECRET", "http:a.png?sig=SECRET"),
    *("http://:80/", "http://host.example:0/?sig=SECRET", "http://host.example:99999/SECRET"),
    *("http://host.example:http/SECRET", "http://user:SECRET@host.example/", "http://@/SECRET"),
    *("http://host.example/\r\nX-A: SECRET", "http://host.example\r\n/SECRET"),
    *(
        "http://host.example/\0SECRET",
        "http://host.example/\tSECRET",
        "http://ho st.example/SECRET",
    ),
    *("http://host.example\\@127.0.0.1/SECRET", "http://[::1/SECRET", "http://[::1]x/SECRET"),
    *("http://\uff0f\uff0f/SECRET", "http://ho\u2100st/SECRET", "http://xn--/SECRET"),
    *("http://..", "http://.", "http://-", "http://%6c%6fcalhost/SECRET"),
    *("s3://bucket/a.png?sig=SECRET", "ftp://user:SECRET@host.example/", "gopher://h/SECRET"),
    *("blob:http://host.example/SECRET", "view-source:http://h/SECRET", "jar:http://h/!/SECRET"),
    *("about:blank", "javascript:alert(1)"),
]


@pytest.mark.parametrize("url", BAD_URLS, ids=ascii)
def test_url_that_names_nothing_is_refused(url: str) -> None:
    check_error(url, MediaFetchError)


# {port} is one at which somebody of this machine listens.
PRIVATE_URLS = [
    *("http://127.0.0.1:{port}", "http://localhost:{port}", "http://LOCALHOST.:{port}"),
    *("http://127.0.0.2:{port}", "http://127.255.255.254:{port}", "http://0.0.0.0:{port}"),
    *("http://good.example@127.0.0.1:{port}", "http://127.0.0.1:{port}#@good.example"),
    *("http://2130706433:{port}", "http://0x7f000001:{port}", "http://0x7f.1:{port}"),
    *("http://017700000001:{port}", "http://0177.0.0.1:{port}", "http://127.1:{port}"),
    *("http://0:{port}", "http://00000.0:{port}", "http://127.0.0.1.:{port}"),
    *("http://[::1]:{port}", "http://[::]:{port}", "http://[::ffff:127.0.0.1]:{port}"),
    *("http://[::ffff:7f00:1]:{port}", "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}"),
    *("http://[::127.0.0.1]:{port}", "http://[64:ff9b::127.0.0.1]:{port}"),
    *("http://[2002:7f00:1::]:{port}", "http://[fe80::1%25lo]:{port}"),
    *("http://\u2460\u2461\u2466.0.0.1:{port}", "http://127\u30020\u30020\u30021:{port}"),
    *("http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/latest/meta-data"),
    *("http://100.100.100.200/", "http://192.0.0.192/", "http://168.63.129.16/"),
    *("http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://224.0.0.1/"),
    *("http://255.255.255.255/", "https://127.0.0.1:{port}", "https://[::1]:{port}"),
]


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_this_machine_and_its_network_are_never_asked(url: str, server: Web) -> None:
    url = url.format(port=server.port)
    with pytest.raises(MediaFetchError, match="refused|no host name|user name|network card"):
        load_image(f"{url}/a.png?sig=SECRET" if "#" not in url else url)
    assert server.num_connections == 0


BAD_ANSWERS: dict[str, tuple[bytes | Callable[[Talk], None], type[MediaError]]] = {
    "nothing": (b"", MediaBusyError),
    "empty body": (answer(b""), ImageCorruptError),
    "400": (answer(PNG, status="400 Bad Request"), MediaFetchError),
    "401": (answer(HTML, status="401 Unauthorized"), MediaForbiddenError),
    "403": (answer(HTML, status="403 Forbidden"), MediaForbiddenError),
    "404": (answer(HTML, status="404 Not Found"), MediaMissingError),
    "416": (answer(status="416 Range"), MediaFetchError),
    "429": (answer(status="429 Too Many Requests"), MediaBusyError),
    "500": (answer(PNG, status="500 Internal Server Error"), MediaBusyError),
    "503": (answer(status="503 Unavailable"), MediaBusyError),
    "999": (answer(PNG, status="999 Whatever"), MediaBusyError),
    "a login page": (answer(HTML, Content_Type="text/html"), ImageFormatError),
    "length too long": (answer(PNG, Content_Length=len(PNG) + 1), ImageTruncatedError),
    "length too short": (answer(PNG, Content_Length=len(PNG) - 1), ImageTruncatedError),
    "length too large": (answer(PNG, Content_Length=10**12), ImageTooLargeError),
    "endless": (
        lambda talk: (talk.say(answer(Content_Length=None)), talk.drip(bytes(100_000), 0)),
        ImageTooLargeError,
    ),
    "endless chunks": (
        lambda talk: (
            talk.say(answer(Content_Length=None, Transfer_Encoding="chunked")),
            talk.drip(b"8000\r\n" + bytes(32_768) + b"\r\n", 0),
        ),
        ImageTooLargeError,
    ),
    "silent": (lambda talk: talk.drip(b"", 0.1), MediaBusyError),
    "slow": (
        lambda talk: (talk.say(answer(Content_Length=900)), talk.drip(b"x", 0.1)),
        MediaBusyError,
    ),
    "reset": (Talk.reset, MediaBusyError),
    "cut": (answer(PNG[:100], Content_Length=len(PNG)), ImageTruncatedError),
    "cut without length": (answer(PNG[:3000], Content_Length=None), ImageTruncatedError),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01", MediaFetchError),
    "redirect to itself": (redirect("/bad"), MediaFetchError),
    "redirect to another query": (redirect("?sig=SECRET2"), MediaFetchError),
    "redirect to nowhere": (answer(status="302 Found"), MediaFetchError),
    "redirect to nothing": (redirect(""), MediaFetchError),
    "redirect to a file": (redirect("file:///etc/SECRET"), MediaFetchError),
    "redirect to a data URL": (redirect("data:image/png;base64,SECRET"), MediaFetchError),
    "redirect to ftp": (redirect("ftp://SECRET@host.example/"), MediaFetchError),
    "redirect to the metadata": (redirect("http://169.254.169.254/SECRET?x"), MediaForbiddenError),
    "redirect to loopback": (redirect("http://[::1]/?SECRET"), MediaForbiddenError),
    "redirect to its decimal": (redirect("http://2130706433/SECRET"), MediaFetchError),
    "redirect with a user": (redirect("http://user:SECRET@host.example/"), MediaFetchError),
    "redirect with a line end": (redirect("/a\rSECRET: x"), MediaMissingError),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answer_of_a_server_is_told(name: str, server: Web) -> None:
    server.routes["/bad"], error = BAD_ANSWERS[name]
    timeout = 0.6 if name in ("silent", "slow") else 30.0
    message = check_error(f"{server.url}/bad?sig=SECRET#SECRET", error, timeout=timeout)
    if name == "redirect to the metadata":
        assert "169.254.169.254 is refused" in message


def check_error(
    source: Any, error: type[MediaError], match: str | None = None, *, timeout: float = 30.0
) -> str:
    """Load it under a policy for which loopback is public; return what was said."""
    fetch = MediaFetcher(
        is_allowed_address=lambda address: address == "127.0.0.1",
        timeout=timeout,
        max_image_bytes=1 << 20,
    )
    start = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        load_image(source, fetch=fetch)
    assert type(caught.value) is error
    message = str(caught.value)
    assert 10 < len(message) < 500
    assert "SECRET" not in message
    assert "0x" not in message  # an address of memory
    assert time.monotonic() - start < 20
    return message
