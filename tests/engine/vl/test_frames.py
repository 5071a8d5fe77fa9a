"""Which frames of a video are taken, and the limits on what they cost."""

import numpy as np
import pytest

from vlmflow_engine.errors import (
    ConfigError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
)
from vlmflow_engine.vl.frames import MAX_FRAMES, Frame, Wish, check_work, stack


@pytest.mark.parametrize(
    ("wish", "total", "rate", "indices"),
    [
        (Wish(4, None), 10, 30, [0, 3, 6, 9]),
        (Wish(32, None), 3, 30, [0, 1, 2]),
        (Wish(1, None), 10, 30, [0]),
        (Wish(2, None), 10, 30, [0, 9]),
        (Wish(-1, None), 4, 30, [0, 1, 2, 3]),
        (Wish(32, 2), 60, 30, [0, 19, 39, 59]),  # two seconds, two frames each
        (Wish(3, 2), 60, 30, [0, 29, 59]),
        (Wish(32, 100), 4, 30, [0, 1, 2, 3]),
        (Wish(32, 0.1), 60, 30, [0]),
        (Wish(-1, 1), 90, 30, [0, 44, 89]),
    ],
)
def test_frames_are_spread_over_the_video(
    wish: Wish, total: int, rate: float, indices: list[int]
) -> None:
    assert wish.indices(total, rate) == indices


@pytest.mark.parametrize(
    ("num_frames", "fps", "name"),
    [(0, None, "num_frames"), (-2, None, "num_frames"), (1.5, None, "num_frames")]
    + [(1, value, "fps") for value in (0, -1, float("nan"), float("inf"))],
)
def test_wish_that_cannot_be_met_is_refused(num_frames: int, fps: float, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Wish(num_frames, fps)


def frame(index: int, width: int = 4, height: int = 3) -> Frame:
    return index, lambda: np.full((height, width, 3), index, np.uint8)


def test_wanted_frames_are_kept_and_no_others_are_read() -> None:
    def refuse() -> None:
        raise AssertionError("nobody wants this frame")

    frames = [frame(0), (1, refuse), frame(2), (3, refuse)]
    pixels, known = stack(frames, [0, 2], (4, 3), 4, 2.0, "test")  # type: ignore[arg-type]
    assert pixels.shape == (2, 3, 4, 3) and pixels.dtype == np.uint8
    assert pixels[:, 0, 0, 0].tolist() == [0, 2]
    assert known == {
        "total_num_frames": 4,
        "fps": 2.0,
        "duration": 2.0,
        "video_backend": "test",
        "frames_indices": [0, 2],
    }


def test_frames_that_do_not_come_or_do_not_fit_are_told() -> None:
    with pytest.raises(ImageTruncatedError, match="before frame 2 of 3"):
        stack([frame(0), frame(1)], [0, 2], (4, 3), 3, 1.0, "test")
    with pytest.raises(ImageFormatError, match="frame 1 has 5 x 3 pixels, the first has 4 x 3"):
        stack([frame(0), frame(1, width=5)], [0, 1], (4, 3), 2, 1.0, "test")


def test_work_is_refused_before_it_is_begun() -> None:
    with pytest.raises(ImageTooLargeError, match="num_frames"):
        stack([], list(range(1_000)), (3_840, 2_160), 1_000, 30.0, "test")
    check_work(10, (100, 100), 100_000)
    for num_frames, side in ((11, 100), (10, 101), (MAX_FRAMES + 1, 1)):
        with pytest.raises(ImageTooLargeError, match="too many to decode"):
            check_work(num_frames, (side, 100), 100_000)


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="fps must be of type int or float or None, got str"):
        Wish(num_frames=1, fps="2")  # type: ignore[arg-type]
