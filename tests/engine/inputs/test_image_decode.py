"""A zoo of files: each ends in an RGB image or in an error of ours that says what is wrong."""

import io
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers.image_transforms import convert_to_rgb

from tests.engine.inputs.pictures import encode, noise, oriented, png_that_claims
from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
    MediaError,
)
from vlmflow_engine.inputs.image_decode import FORMATS, decode_image, to_rgb

MAX_PIXELS = 100_000
PICTURE = noise(60, 40)
PALETTE = PICTURE.convert("P")
FILES = {
    "JPEG": encode(PICTURE, "JPEG"),
    "progressive JPEG": encode(PICTURE, "JPEG", progressive=True),
    "JPEG of two pictures": encode(PICTURE, "MPO", save_all=True, append_images=[noise(60, 40)]),
    "PNG": encode(PICTURE, "PNG"),
    "WebP": encode(PICTURE, "WEBP"),
    "GIF": encode(PALETTE, "GIF"),
    "BMP": encode(PICTURE, "BMP"),
}


def _short(value: Any) -> str | None:
    """Name a test by the first bytes of a file instead of all."""
    return repr(value[:8]) if isinstance(value, bytes) else None


GREY = np.linspace(0, 255, 2400).astype(np.uint8).reshape(40, 60)


@pytest.mark.parametrize("name", FILES)
def test_file_of_an_allowed_format_becomes_its_picture(name: str) -> None:
    image = decode_image(FILES[name], max_pixels=MAX_PIXELS)
    expected = Image.open(io.BytesIO(FILES[name])).convert("RGB")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_lossless_file_keeps_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encode(PICTURE, kind, **options), max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("P", "BMP"), ("CMYK", "JPEG")],
)
def test_picture_of_another_mode_becomes_rgb(mode: str, kind: str) -> None:
    stored = PICTURE.convert(mode)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = decode_image(encode(stored, kind, **options), max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    # A JPEG of noise is never exact; taken for inverted, it would be off by 85 on average.
    allowed = 3 if kind == "JPEG" else 0
    assert _mean_difference(image, stored.convert("RGB")) <= allowed


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(PICTURE.convert("RGBA"), "PNG"), id="RGBA"),
        pytest.param(encode(PICTURE.convert("RGBA"), "WEBP", lossless=True), id="WebP"),
        pytest.param(encode(PALETTE, "PNG", transparency=bytes([255] * 256)), id="palette"),
    ],
)
def test_opaque_picture_with_an_alpha_channel_keeps_its_colours(data: bytes) -> None:
    expected = PALETTE.convert("RGB") if b"PLTE" in data else PICTURE
    image = decode_image(data, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.new("LA", (3, 2), (200, 0)), "PNG"), id="LA"),
        pytest.param(encode(Image.new("RGBA", (3, 2), (200, 200, 200, 0)), "PNG"), id="RGBA"),
        pytest.param(
            encode(Image.new("RGB", (3, 2), (200,) * 3), "PNG", transparency=(200,) * 3),
            id="transparent colour",
        ),
        pytest.param(
            encode(Image.new("L", (3, 2), 200).convert("P"), "PNG", transparency=200),
            id="transparent entry",
        ),
        pytest.param(
            encode(Image.new("L", (3, 2), 200).convert("P"), "PNG", transparency=bytes(256)),
            id="transparent palette",
        ),
        pytest.param(
            encode(Image.new("L", (3, 2), 200).convert("P"), "GIF", transparency=200), id="GIF"
        ),
    ],
)
def test_transparent_pixel_is_white_as_in_transformers(data: bytes) -> None:
    image = np.asarray(decode_image(data, max_pixels=MAX_PIXELS))
    theirs = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(image, theirs)
    assert set(image.flat) == {255}


def test_shades_of_sixteen_bits_are_kept() -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    image = decode_image(encode(deep, "PNG"), max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image)[:, :, 0], GREY)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    image = decode_image(data, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(frames[0]))


# How the stored pixels [height, width, 3] are turned upright, by EXIF orientation.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
    0: lambda pixels: pixels,
    9: lambda pixels: pixels,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_picture_of_a_turned_camera_is_upright(orientation: int) -> None:
    data = encode(PICTURE, "PNG", exif=oriented(orientation))
    image = decode_image(data, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](np.asarray(PICTURE)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_from_every_format_that_has_it(kind: str) -> None:
    data = encode(PICTURE, kind, exif=oriented(6))
    assert decode_image(data, max_pixels=MAX_PIXELS).size == (40, 60)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP"]), exif=st.binary(max_size=60))
@example(kind="PNG", exif=b"garbage!")
@example(kind="WEBP", exif=b"garbage!")
@example(kind="PNG", exif=b"MM\0*\0\0\0\x08\xff\xff")  # 65,535 entries, and the end
@example(kind="WEBP", exif=b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0" + b"\xff" * 4 + b"\0" * 4)
@example(kind="PNG", exif=b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff")
@example(kind="JPEG", exif=b"MM\0*\0\0\0\x08\xff\xff")
def test_broken_exif_costs_no_more_than_the_image(kind: str, exif: bytes) -> None:
    data = encode(noise(9, 12), kind, exif=b"Exif\0\0" + exif)
    assert _outcome(data) in ("RGB", "error of ours")


def test_broken_exif_in_the_text_of_a_png_costs_no_more_than_the_image() -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n    10\nno hex digits")
    assert _outcome(encode(PICTURE, "PNG", pnginfo=info)) in ("RGB", "error of ours")


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        *((name, n) for name in ("JPEG", "progressive JPEG", "PNG") for n in (1, 2, 3, 8, 12, 20)),
        *(
            (name, n)
            for name in ("JPEG", "progressive JPEG", "PNG", "GIF")
            for n in (40, 200, 1500)
        ),
    ],
)
def test_file_that_ends_early_is_truncated(name: str, num_bytes: int) -> None:
    data = FILES[name][:-num_bytes]
    with pytest.raises(ImageTruncatedError, match=f"{len(data):,} bytes"):
        decode_image(data, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 8, 12])
def test_gif_without_its_last_bytes_is_truncated_or_whole(num_bytes: int) -> None:
    try:
        image = decode_image(FILES["GIF"][:-num_bytes], max_pixels=MAX_PIXELS)
    except ImageTruncatedError:
        return  # its last byte alone says that it ends here, and is missing
    np.testing.assert_array_equal(np.asarray(image), np.asarray(PALETTE.convert("RGB")))


@pytest.mark.parametrize("num_bytes", [1, 12, 200])
@pytest.mark.parametrize("name", ["WebP", "BMP"])
def test_file_of_other_formats_that_ends_early_is_an_error(name: str, num_bytes: int) -> None:
    with pytest.raises((ImageTruncatedError, ImageCorruptError)):
        decode_image(FILES[name][:-num_bytes], max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    "tail", [b"\0", b"\n" * 64, b"\0" * 65, b"\r\ntrailer" * 1000], ids=lambda t: f"{len(t)} bytes"
)
@pytest.mark.parametrize("name", FILES)
def test_what_follows_the_end_of_an_image_does_not_matter(name: str, tail: bytes) -> None:
    image = decode_image(FILES[name] + tail, max_pixels=MAX_PIXELS)
    expected = decode_image(FILES[name], max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "error", "what"),
    [
        (b"", ImageCorruptError, "zero bytes"),
        (b"\0" * 100, ImageCorruptError, "100 bytes"),
        (b"just a text", ImageCorruptError, "no image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", ImageFormatError, "web page"),
        (b"\r\n <HTML>\n", ImageFormatError, "web page"),
        (b'<?xml version="1.0"?><svg/>', ImageFormatError, "web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ImageFormatError, "web page"),
        (encode(PICTURE, "TIFF"), ImageFormatError, "TIFF"),
        (encode(PICTURE, "AVIF"), ImageFormatError, "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", ImageFormatError, "HEIC"),
        (b"%PDF-1.7\n", ImageFormatError, "PDF"),
        (encode(PICTURE, "ICO"), ImageCorruptError, "no image"),
        (encode(PICTURE, "PPM"), ImageCorruptError, "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ImageCorruptError, "no image"),
        (FILES["JPEG"][:30], ImageCorruptError, "30 bytes"),
        (FILES["PNG"][:200] + bytes(50) + FILES["PNG"][250:], ImageCorruptError, "PNG"),
    ],
    ids=_short,
)
def test_what_is_no_allowed_image_is_named(data: bytes, error: type[MediaError], what: str) -> None:
    with pytest.raises(error, match=what):
        decode_image(data, max_pixels=MAX_PIXELS)


def test_refusal_names_the_formats_that_are_allowed() -> None:
    with pytest.raises(ImageFormatError, match=", ".join(FORMATS)):
        decode_image(encode(PICTURE, "TIFF"), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_that_claims(1_000, 101), id="just above"),
        pytest.param(png_that_claims(10_000, 10_000), id="above Pillow's warning"),
        pytest.param(png_that_claims(50_000, 50_000), id="above Pillow's limit"),
        pytest.param(png_that_claims(2**31 - 1, 1), id="wide"),
        pytest.param(
            FILES["GIF"][:6] + struct.pack("<HH", 65_535, 65_535) + FILES["GIF"][10:], id="GIF"
        ),
        pytest.param(
            FILES["BMP"][:18] + struct.pack("<ii", 2**30, 2**30) + FILES["BMP"][26:], id="BMP"
        ),
    ],
)
def test_image_too_large_is_refused_before_it_is_decoded(data: bytes) -> None:
    # Each has a few hundred bytes of pixels at most: decoding would find it truncated.
    with pytest.raises(ImageTooLargeError, match="pixels"):
        decode_image(data, max_pixels=MAX_PIXELS)


def test_image_of_exactly_the_allowed_pixels_is_decoded() -> None:
    data = encode(Image.new("RGB", (400, 250)), "PNG")
    assert decode_image(data, max_pixels=MAX_PIXELS).size == (400, 250)
    with pytest.raises(ImageTooLargeError, match="400 x 250 pixels.*99,999"):
        decode_image(data, max_pixels=MAX_PIXELS - 1)


@pytest.mark.parametrize("size", [(2**24, 2**10), (16_384, 16_384), (401, 250)])
def test_webp_too_large_is_refused_before_pillow_makes_room_for_it(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    data = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0"
    with pytest.raises(ImageTooLargeError, match=f"{size[0]:,} x {size[1]:,} pixels"):
        decode_image(data + sides, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"exif": oriented(1)}, {"save_all": True}], ids=repr
)
def test_size_of_every_kind_of_webp_is_checked_before_it_is_opened(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "save_all" in options:
        options = options | {"append_images": [noise(401, 251, seed=1)]}
    data = encode(noise(401, 251), "WEBP", **options)
    assert decode_image(data, max_pixels=401 * 251).size == (401, 251)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageTooLargeError, match="401 x 251 pixels"):
        decode_image(data, max_pixels=401 * 251 - 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "16 bits"])
def test_tiff_is_decoded_if_it_is_asked_for(mode: str) -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    stored = deep if mode == "16 bits" else PICTURE.convert(mode)
    data = encode(stored, "TIFF", compression="tiff_deflate")
    image = decode_image(data, max_pixels=MAX_PIXELS, allow_tiff=True)
    expected = Image.fromarray(GREY) if mode == "16 bits" else stored
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))
    with pytest.raises(ImageFormatError, match="TIFF, HEIC, AVIF and PDF files are not read"):
        decode_image(data, max_pixels=MAX_PIXELS)


def test_limits_hold_for_tiff_too() -> None:
    data = encode(noise(401, 250), "TIFF")
    with pytest.raises(ImageTooLargeError, match="401 x 250"):
        decode_image(data, max_pixels=MAX_PIXELS, allow_tiff=True)
    for cut in (data[:-100], data[: len(data) // 2]):
        with pytest.raises((ImageTruncatedError, ImageCorruptError)):
            decode_image(cut, max_pixels=401 * 250, allow_tiff=True)
    with pytest.raises(ImageFormatError, match="HEIC, AVIF and PDF .* allowed are .*, TIFF$"):
        decode_image(b"%PDF-1.7", max_pixels=MAX_PIXELS, allow_tiff=True)


@pytest.mark.parametrize(
    ("size", "is_allowed"), [((8, 8), True), ((7, 90), False), ((90, 7), False)]
)
def test_side_may_be_too_short(size: tuple[int, int], is_allowed: bool) -> None:
    data = encode(noise(*size), "PNG")
    assert decode_image(data, max_pixels=MAX_PIXELS).size == size
    if is_allowed:
        assert decode_image(data, max_pixels=MAX_PIXELS, min_side=8).size == size
    else:
        with pytest.raises(ImageFormatError, match="at least 8"):
            decode_image(data, max_pixels=MAX_PIXELS, min_side=8)


MUTATED = st.builds(
    lambda data, cut, changes: _changed(data[:cut], changes),
    st.sampled_from(
        [encode(noise(9, 12), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
        + [encode(noise(9, 12).convert("P"), kind, transparency=3) for kind in ("PNG", "GIF")]
        + [encode(noise(9, 12), "PNG", exif=oriented(6))]
        + [encode(noise(9, 12), "MPO", save_all=True, append_images=[noise(9, 12)])]
    ),
    st.none() | st.integers(0, 2_000),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=6),
)
STARTED = st.builds(
    lambda start, rest: start + rest,
    st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 "]
    ),
    st.binary(max_size=200),
)


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=200) | STARTED | MUTATED)
def test_any_bytes_end_in_an_image_or_in_an_error_of_ours(data: bytes) -> None:
    assert _outcome(data) in ("RGB", "error of ours")


@pytest.mark.parametrize(
    "data",
    [
        b"no image at all",
        FILES["JPEG"][:-200],
        FILES["PNG"][:-200],
        FILES["PNG"][:200] + bytes(50) + FILES["PNG"][250:],
        FILES["WebP"][:-200],
        FILES["BMP"][:-200],
        FILES["BMP"][:14] + b"\xff" + FILES["BMP"][15:],
        png_that_claims(50_000, 50_000),
        png_that_claims(10, 10),
    ],
    ids=_short,
)
def test_message_holds_nothing_of_what_the_decoder_said(data: bytes) -> None:
    decoder_errors = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
    with pytest.raises(decoder_errors) as theirs:
        Image.open(io.BytesIO(data)).load()
    with pytest.raises(MediaError) as ours:
        decode_image(data, max_pixels=MAX_PIXELS)
    assert str(theirs.value) not in str(ours.value)
    assert "0x" not in str(ours.value)
    assert ours.value.__suppress_context__  # nor does a traceback of it show more


def test_threads_leave_the_filters_of_warnings_alone() -> None:
    data = png_that_claims(10_000, 10_000)  # Pillow warns of it
    interval = sys.getswitchinterval()
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        before = list(warnings.filters)
        sys.setswitchinterval(1e-6)
        try:
            outcomes = set(pool.map(_error_type, [data] * 2_000))
        finally:
            sys.setswitchinterval(interval)
        assert outcomes == {ImageTooLargeError}
        assert warnings.filters == before


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "HSV"])
def test_picture_in_hand_becomes_rgb_of_the_same_size(mode: str) -> None:
    assert (image := to_rgb(Image.new(mode, (3, 2)))).mode == "RGB"
    assert image.size == (3, 2)


def _changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        if place < len(changed):
            changed[place] = value
    return bytes(changed)


def _outcome(data: bytes) -> str:
    try:
        return decode_image(data, max_pixels=MAX_PIXELS).mode
    except MediaError:
        return "error of ours"


def _error_type(data: bytes) -> type[MediaError] | None:
    try:
        decode_image(data, max_pixels=MAX_PIXELS)
    except MediaError as error:
        return type(error)
    return None


def _mean_difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())


@pytest.mark.parametrize(
    "values",
    [np.full((3, 2), 40_000, np.int32), np.full((3, 2), -1, np.int32)]
    + [np.full((3, 2), value, np.float32) for value in (0.5, 1.0, 300.0, np.nan)],
    ids=["depth", "negative", "share", "one", "bright", "nan"],
)
def test_values_that_are_not_those_of_8_bits_are_not_clipped_without_a_word(values) -> None:
    with pytest.raises(ImageFormatError, match="scale it to 0 ... 255"):
        to_rgb(Image.fromarray(values))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_of_8_bits_stay_what_they_are_whatever_holds_them(kind) -> None:
    values = np.array([[0, 17], [200, 255]])
    image = to_rgb(Image.fromarray(values.astype(kind)))
    assert (np.asarray(image)[:, :, 1] == values).all()
