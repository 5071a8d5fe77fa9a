"""Animations and frames in a data URL become frames; what is neither is refused."""

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.inputs.pictures import encode, noise, png_that_claims
from tests.engine.vl.web import Web, answer
from vlmflow_engine.errors import (
    ConfigError,
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
    MediaError,
    MediaFetchError,
)
from vlmflow_engine.vl import MediaFetcher, load_video, video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
PICTURES = [Image.new("RGB", (24, 16), colour) for colour in COLOURS]


def animation(kind: str, **options: Any) -> bytes:
    """Five frames in five colours, a fifth of a second each."""
    defaults: dict[str, Any] = {"save_all": True, "append_images": PICTURES[1:], "duration": 200}
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encode(PICTURES[0], kind, **defaults | lossless | options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_becomes_its_frames(kind: str) -> None:
    frames, known = load_video(animation(kind))
    assert frames.shape == (5, 16, 24, 3) and frames.dtype == np.uint8
    assert [tuple(frame[8, 12]) for frame in frames] == COLOURS
    assert known == {
        "total_num_frames": 5,
        "fps": 5.0,
        "duration": 1.0,
        "video_backend": "pillow",
        "frames_indices": [0, 1, 2, 3, 4],
    }


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_asked_for_are_those_that_come(kind: str) -> None:
    frames, known = load_video(animation(kind), num_frames=3)
    assert known["frames_indices"] == [0, 2, 4]
    assert [tuple(frame[0, 0]) for frame in frames] == [COLOURS[0], COLOURS[2], COLOURS[4]]
    assert load_video(animation(kind), fps=2)[1]["frames_indices"] == [0, 4]


def test_frame_that_changes_a_part_stands_on_the_one_before() -> None:
    second = PICTURES[0].copy()
    second.paste((0, 0, 255), (0, 0, 4, 4))
    frames, _ = load_video(animation("GIF", append_images=[second]))
    assert tuple(frames[1][0, 0]) == (0, 0, 255)
    assert tuple(frames[1][15, 23]) == (255, 0, 0)


def test_frames_of_different_durations_share_a_rate() -> None:
    known = load_video(animation("GIF", duration=[100, 200, 300, 400, 1_000]))[1]
    assert known["duration"] == pytest.approx(2.0)
    assert known["fps"] == pytest.approx(2.5)


def test_picture_that_stands_still_is_a_video_of_one_frame() -> None:
    picture = noise(9, 7)
    frames, known = load_video(encode(picture, "PNG"))
    np.testing.assert_array_equal(frames[0], np.asarray(picture))
    assert (known["total_num_frames"], known["duration"]) == (1, pytest.approx(0.1))


def test_video_is_fetched_like_an_image(server: Web, tmp_path: Path) -> None:
    data = animation("GIF")
    (tmp_path / "a.gif").write_bytes(data)
    server.routes["/a.gif"] = answer(data)
    fetch = MediaFetcher(is_allowed_address=lambda address: address == "127.0.0.1")
    url = f"data:image/gif;base64,{base64.b64encode(data).decode()}"
    for source in (tmp_path / "a.gif", url, f"{server.url}/a.gif"):
        assert load_video(source, fetch=fetch)[0].shape == (5, 16, 24, 3)
    with pytest.raises(MediaFetchError, match="public addresses only"):
        load_video(f"{server.url}/a.gif")


def test_time_limit_of_a_video_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in video.TIMEOUT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert video._fetcher().timeout == 30
    monkeypatch.setenv("LMDEPLOY_VIDEO_FETCH_TIMEOUT", "4")
    assert video._fetcher().timeout == 4
    monkeypatch.setenv("VLMFLOW_VIDEO_FETCH_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="VLMFLOW_VIDEO_FETCH_TIMEOUT"):
        load_video(animation("GIF"))


def jpeg_frames(*pictures: Image.Image) -> str:
    frames = [base64.b64encode(encode(p, "JPEG", quality=95)).decode() for p in pictures]
    return "data:video/jpeg;base64," + ",".join(frames)


def test_frames_in_a_data_url_are_two_a_second() -> None:
    frames, known = load_video(jpeg_frames(*PICTURES))
    assert frames.shape == (5, 16, 24, 3)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() < 8
    assert known == {
        "total_num_frames": 5,
        "fps": 2.0,
        "duration": 2.5,
        "video_backend": "jpeg",
        "frames_indices": [0, 1, 2, 3, 4],
    }
    assert load_video(jpeg_frames(*PICTURES), num_frames=2)[1]["frames_indices"] == [0, 4]
    assert len(load_video(jpeg_frames(PICTURES[0]))[0]) == 1


@pytest.mark.parametrize(
    ("url", "error"),
    [
        (jpeg_frames(PICTURES[0]) + ",", ImageCorruptError),
        (jpeg_frames(PICTURES[0]) + ",@@@@", MediaFetchError),
        ("data:video/jpeg;base64,", ImageCorruptError),
        (jpeg_frames(PICTURES[0], noise(25, 16)), ImageFormatError),
        (jpeg_frames(noise(40, 30))[:-200], ImageTruncatedError),
    ],
    ids=["empty frame", "no base64", "nothing", "two sizes", "cut"],
)
def test_broken_frames_in_a_data_url_are_told(url: str, error: type[MediaError]) -> None:
    with pytest.raises(error):
        load_video(url)


GIF = animation("GIF")
BAD: dict[str, tuple[Any, type[MediaError]]] = {
    "nothing": (b"", ImageFormatError),
    "text": (b"no video", ImageFormatError),
    "JPEG": (encode(PICTURES[0], "JPEG"), ImageFormatError),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", ImageFormatError),
    "list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", ImageFormatError),
    "picture in hand": (PICTURES[0], MediaFetchError),
    "None": (None, MediaFetchError),
    "missing": ("/nowhere/a.gif", MediaFetchError),
    "cut GIF": (GIF[: len(GIF) // 2], ImageCorruptError),
    "cut WebP": (animation("WEBP")[:-40], ImageCorruptError),
    "GIF bomb": (GIF[:6] + struct.pack("<HH", 65_535, 65_535) + GIF[10:], ImageTooLargeError),
    "PNG bomb": (png_that_claims(50_000, 50_000), ImageTooLargeError),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_video_is_told(name: str) -> None:
    source, error = BAD[name]
    with pytest.raises(error) as caught:
        load_video(source)
    assert len(str(caught.value)) < 300


def test_animation_of_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_ANIMATION_PIXELS", 5 * 24 * 16 - 1)
    with pytest.raises(ImageTooLargeError, match="5 frames of 24 x 16"):
        load_video(GIF)
