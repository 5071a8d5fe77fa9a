"""A video to frames, evenly spread over it: [num_frames, height, width, 3] uint8.

animated GIF, WebP, PNG     Pillow
mp4, mov, webm, mkv, avi    PyAV, which is an extra: pip install 'vlmflow[video]'
data:video/jpeg;base64,     JPEG frames joined by commas, two a second
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ImageCorruptError, ImageFormatError, MediaFetchError
from vlmflow_engine.inputs.image_decode import decode_image, open_image, silence, to_rgb
from vlmflow_engine.vl.fetch import MediaFetcher, read_timeout
from vlmflow_engine.vl.frames import Pixels, Wish, check_work, stack
from vlmflow_engine.vl.video_file import decode_video_file

DEFAULT_TIMEOUT_SECONDS = 30.0
TIMEOUT_VARIABLES = ("VLMFLOW_VIDEO_FETCH_TIMEOUT", "LMDEPLOY_VIDEO_FETCH_TIMEOUT")
MAX_ANIMATION_PIXELS = 1 << 33  # of all its frames: about a minute's work

_JPEG_FRAMES = "data:video/jpeg;base64,"
_JPEG_FRAMES_PER_SECOND = 2.0
_STILL_SECONDS = 0.1  # what browsers take for a frame of an animation that names no duration


def load_video(
    url: Any,
    num_frames: int = 32,
    fps: float | None = None,
    *,
    fetch: MediaFetcher | None = None,
) -> tuple[Pixels, dict[str, Any]]:
    """Return frames of a video, [num_frames, height, width, 3] uint8, and what is known of it.

        frames, about = load_video("clip.gif", num_frames=8)

    url         an http(s), file: or data: URL, a path, or bytes
    num_frames  at most so many, evenly spread, first and last among them; -1: all
    fps         at most so many a second of the video; None: no such limit
    fetch       another MediaFetcher than the default one, which waits up to 30 seconds

    The second value is a dict of total_num_frames, fps, duration (seconds), video_backend and
    frames_indices. Animated GIF, WebP and PNG are read as they are, mp4, mov, webm, mkv and avi
    with the extra vlmflow[video].

    Raises MediaError, UnsupportedFeatureError if the decoder is not installed, ConfigError for a
    wrong num_frames or fps.
    """
    wish = Wish(num_frames, fps)
    if isinstance(url, str) and url[: len(_JPEG_FRAMES)].lower() == _JPEG_FRAMES:
        return _load_jpeg_frames(url[len(_JPEG_FRAMES) :], wish, fetch or _fetcher())
    data = (fetch or _fetcher())(url)
    if not isinstance(data, bytes):
        raise MediaFetchError(f"a video is a path, a URL or bytes, got {type(url).__name__}")
    if data.startswith((b"GIF8", b"\x89PNG")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return _load_animation(data, wish)
    if container := _container(data):
        return decode_video_file(data, container, wish)
    raise ImageFormatError(
        f"{len(data):,} bytes that are no video; mp4, mov, webm, mkv, avi and animated GIF, WebP "
        "and PNG are read"
    )


def _fetcher() -> MediaFetcher:
    return MediaFetcher(timeout=read_timeout(TIMEOUT_VARIABLES, DEFAULT_TIMEOUT_SECONDS))


def _container(data: bytes) -> str | None:
    """The one demuxer that may read it; playlists, which name other files, have none."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def _max_pixels() -> int:
    return PytorchEngineConfig().max_image_pixels


def _load_jpeg_frames(text: str, wish: Wish, fetch: MediaFetcher) -> tuple[Pixels, dict[str, Any]]:
    parts = text.split(",")
    indices = wish.indices(len(parts), _JPEG_FRAMES_PER_SECOND)

    def frame(index: int) -> Image.Image:
        data = fetch(f"data:image/jpeg;base64,{parts[index]}")
        assert isinstance(data, bytes)
        return decode_image(data, max_pixels=_max_pixels())

    return stack(
        ((index, lambda index=index: np.asarray(frame(index))) for index in indices),  # type: ignore[misc]
        indices,
        frame(0).size,
        len(parts),
        _JPEG_FRAMES_PER_SECOND,
        "jpeg",
    )


def _load_animation(data: bytes, wish: Wish) -> tuple[Pixels, dict[str, Any]]:
    formats = ("GIF", "WEBP", "PNG")
    with silence:
        image = open_image(data, max_pixels=_max_pixels(), formats=formats)
        total = _num_frames(image)
        check_work(total, image.size, MAX_ANIMATION_PIXELS)
        # A frame's duration is known once the frame is reached.
        seconds = sum(_seconds(frame) for _, frame in _walk(image, total))
        rate = total / seconds
        image = open_image(data, max_pixels=_max_pixels(), formats=formats)
        return stack(
            (
                (index, lambda frame=frame: np.asarray(to_rgb(frame)))  # type: ignore[misc]
                for index, frame in _walk(image, total)
            ),
            wish.indices(total, rate),
            image.size,
            total,
            rate,
            "pillow",
        )


def _num_frames(image: ImageFile.ImageFile) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        # As with a still image: whatever the decoder says, it is not repeated.
        raise ImageCorruptError(f"{image.format} animation cannot be decoded") from None


def _walk(image: ImageFile.ImageFile, total: int) -> Iterator[tuple[int, ImageFile.ImageFile]]:
    for index in range(total):
        try:
            image.seek(index)
            image.load()
        except Exception:
            raise ImageCorruptError(
                f"frame {index} of a {image.format} animation cannot be decoded"
            ) from None
        yield index, image


def _seconds(frame: ImageFile.ImageFile) -> float:
    milliseconds = frame.info.get("duration")
    if not isinstance(milliseconds, int | float) or not 0 < milliseconds < math.inf:
        return _STILL_SECONDS
    return milliseconds / 1000
