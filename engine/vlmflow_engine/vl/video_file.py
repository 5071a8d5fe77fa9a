"""Frames of a real video file, by PyAV (FFmpeg's libraries) if it is installed.

FFmpeg can open other files and URLs that a file names (playlists, references). So the container is
chosen by us, and no protocol may be opened.
"""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
    UnsupportedFeatureError,
)
from vlmflow_engine.vl.frames import Frame, Pixels, Wish, check_work, stack

MAX_VIDEO_PIXELS = 1 << 38  # decoded to get at the last frame wanted: minutes of work

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def decode_video_file(
    data: bytes, container_name: str, wish: Wish
) -> tuple[Pixels, dict[str, Any]]:
    """Decode the wanted frames. Raises a MediaError, or UnsupportedFeatureError without PyAV."""
    try:
        import av
    except ImportError:
        raise UnsupportedFeatureError(
            f"{container_name} videos are read by PyAV, which is not installed: "
            "pip install 'vlmflow[video]'"
        ) from None
    # A frame may claim another size than the header, and frames are decoded to find out about a
    # file: so the decoders know the limit too.
    limits = {"max_pixels": str(PytorchEngineConfig().max_image_pixels)}
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=container_name,
            options=limits | {"protocol_whitelist": "none"},
            metadata_errors="ignore",
        ) as container:
            if not container.streams.video:
                raise ImageFormatError(f"{container_name} file of {len(data):,} bytes has no video")
            stream = container.streams.video[0]
            stream.codec_context.options = limits
            return _decode(container, stream, wish)
    except av.FFmpegError:
        # What FFmpeg says of a broken file is for its developers.
        raise ImageCorruptError(
            f"{container_name} video of {len(data):,} bytes cannot be decoded"
        ) from None


def _decode(
    container: "InputContainer", stream: "VideoStream", wish: Wish
) -> tuple[Pixels, dict[str, Any]]:
    width, height = stream.codec_context.width, stream.codec_context.height
    max_pixels = PytorchEngineConfig().max_image_pixels
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"video has {width:,} x {height:,} pixels a frame, more than "
            f"max_image_pixels={max_pixels:,}"
        )
    total = _count_frames(container, stream)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not total or rate <= 0 or not width or not height:
        raise ImageCorruptError("the video has no frames, no rate or no size")
    indices = wish.indices(total, rate)
    check_work(indices[-1] + 1, (width, height), MAX_VIDEO_PIXELS)
    container.seek(0)
    stream.thread_type = "AUTO"
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        raise ImageTruncatedError(f"the video ends before frame 0 of {total}")
    if first.rotation % 180:
        width, height = height, width

    def numbered() -> Iterator[Frame]:
        yield 0, lambda: _pixels(first)
        for index, frame in enumerate(frames, start=1):
            yield index, lambda frame=frame: _pixels(frame)  # type: ignore[misc]

    return stack(numbered(), indices, (width, height), total, rate, "pyav")


def _count_frames(container: "InputContainer", stream: "VideoStream") -> int:
    """Count without decoding: what a header says of it may be missing or wrong."""
    total = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ImageTruncatedError(f"the video ends in the middle of frame {total}")
        total += bool(packet.size) and not packet.is_discard
    return total


def _pixels(frame: "VideoFrame") -> Pixels:
    """RGB, turned as the camera was held: [height, width, 3]."""
    pixels = frame.to_ndarray(format="rgb24")
    turned: Pixels = np.rot90(pixels, round(frame.rotation / 90))
    return turned
