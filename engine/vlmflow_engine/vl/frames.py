"""Choosing frames of a video and putting them into one array, within limits."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmflow_engine.checks import check_at_least, check_type
from vlmflow_engine.errors import (
    ConfigError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
)

MAX_FRAMES = 1 << 18  # of a whole video: more than two hours at 30 a second
MAX_RETURNED_BYTES = 2 << 30

Pixels = NDArray[np.uint8]  # [height, width, 3], or [num_frames, height, width, 3]
Frame = tuple[int, Callable[[], Pixels]]  # its index, and what gives its pixels if it is wanted


@dataclass(frozen=True, slots=True)
class Wish:
    """Which frames a caller wants."""

    num_frames: int  # at most; -1: all
    fps: float | None  # at most so many a second

    def __post_init__(self) -> None:
        if self.num_frames != -1:
            check_at_least("num_frames", self.num_frames, 1)
        check_type("fps", self.fps, int, float, NoneType)
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"fps must be a number above 0, got {self.fps!r}")

    def indices(self, num_frames: int, rate: float) -> list[int]:
        """Spread what is wanted over the frames there are, first and last among them."""
        count = num_frames if self.num_frames == -1 else min(num_frames, self.num_frames)
        if self.fps is not None:
            count = min(count, math.floor(num_frames / rate * self.fps))
        return [int(index) for index in np.linspace(0, num_frames - 1, max(count, 1), dtype=int)]


def stack(
    frames: Iterable[Frame],
    indices: list[int],
    size: tuple[int, int],
    total: int,
    rate: float,
    backend: str,
) -> tuple[Pixels, dict[str, Any]]:
    """Keep the wanted ones of a stream of frames, all of one size (width, height).

    frames  in ascending order, each good until the next is asked for
    """
    width, height = size
    if len(indices) * width * height * 3 > MAX_RETURNED_BYTES:
        raise ImageTooLargeError(
            f"{len(indices):,} frames of {width:,} x {height:,} pixels are more than "
            f"{MAX_RETURNED_BYTES:,} bytes; ask for fewer with num_frames"
        )
    pixels = np.empty((len(indices), height, width, 3), np.uint8)
    num_filled = 0
    for index, read in frames:
        if index != indices[num_filled]:
            continue
        frame = read()
        if frame.shape != pixels.shape[1:]:
            raise ImageFormatError(
                f"frame {index} has {frame.shape[1]:,} x {frame.shape[0]:,} pixels, the first has "
                f"{width:,} x {height:,}; a video's frames are of one size"
            )
        pixels[num_filled] = frame
        num_filled += 1
        if num_filled == len(indices):
            break
    else:
        raise ImageTruncatedError(f"the video ends before frame {indices[num_filled]} of {total}")
    return pixels, {
        "total_num_frames": total,
        "fps": rate,
        "duration": total / rate,
        "video_backend": backend,
        "frames_indices": indices,
    }


def check_work(num_frames: int, size: tuple[int, int], max_pixels: int) -> None:
    """Raises ImageTooLargeError before minutes are spent on decoding."""
    if num_frames > MAX_FRAMES or num_frames * size[0] * size[1] > max_pixels:
        raise ImageTooLargeError(
            f"{num_frames:,} frames of {size[0]:,} x {size[1]:,} pixels are too many to decode; "
            "cut the video or make it smaller"
        )
