"""Real video files, encoded here by the library that decodes them there."""

import io
import subprocess
import sys
from fractions import Fraction
from tempfile import NamedTemporaryFile
from typing import Any

import av
import numpy as np
import pytest

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
    MediaError,
)
from vlmflow_engine.vl import load_video, video_file

NUM_FRAMES, RATE, SIZE = 20, 10, (64, 48)
SHADES = [10 + 12 * index for index in range(NUM_FRAMES)]


def encode(
    container: str = "mp4",
    codec: str = "mpeg4",
    *,
    size: tuple[int, int] = SIZE,
    options: dict[str, str] | None = None,
) -> bytes:
    """Twenty grey frames, each lighter than the one before; their left upper quarter is black."""
    with NamedTemporaryFile() as file:  # with its index in front, a file is written twice
        with av.open(file.name, "w", format=container, options=options or {}) as output:
            _write(output, codec, size)
        return file.read()


def _write(output: Any, codec: str, size: tuple[int, int]) -> None:
    stream = output.add_stream(codec, rate=RATE, width=size[0], height=size[1])
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 2_000_000
    for shade in SHADES:
        pixels = np.full((size[1], size[0], 3), shade, np.uint8)
        pixels[: size[1] // 2, : size[0] // 2] = 0
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    output.mux(stream.encode())


def shades(frames: Any) -> list[int]:
    """What each frame has in its right lower corner."""
    return [int(frame[-8:, -8:].mean()) for frame in frames]


FILES = {"mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "webm": "libvpx", "avi": "mpeg4"}


@pytest.mark.parametrize("container", FILES)
def test_video_becomes_its_frames(container: str) -> None:
    codec = FILES[container]
    data = encode(container, codec, options={"strict": "unofficial"})
    frames, known = load_video(data)
    assert frames.shape == (NUM_FRAMES, SIZE[1], SIZE[0], 3)
    assert np.abs(np.subtract(shades(frames), SHADES)).max() <= 6
    assert frames[:, :16, :24].max() < 30
    assert known == {
        "total_num_frames": NUM_FRAMES,
        "fps": RATE,
        "duration": NUM_FRAMES / RATE,
        "video_backend": "pyav",
        "frames_indices": list(range(NUM_FRAMES)),
    }


def test_frames_asked_for_are_those_that_come() -> None:
    frames, known = load_video(encode(codec="libx264"), num_frames=3)
    assert known["frames_indices"] == [0, 9, 19]
    assert np.abs(np.subtract(shades(frames), [SHADES[i] for i in (0, 9, 19)])).max() <= 6
    assert load_video(encode(), fps=2)[1]["frames_indices"] == [0, 6, 12, 19]


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
    ],
)
def test_video_of_a_turned_camera_is_upright(matrix: tuple[int, ...], turned: Any) -> None:
    data = encode()
    place = data.index(b"tkhd") + 44  # the track's matrix of 9 numbers, in 16.16
    a, b, c, d = ((value * 65_536).to_bytes(4, "big", signed=True) for value in matrix)
    zero = bytes(4)
    matrix_bytes = a + b + zero + c + d + zero
    frames, _ = load_video(data[:place] + matrix_bytes + data[place + 24 :])
    plain, _ = load_video(data)
    for frame, expected in zip(frames, plain, strict=True):
        np.testing.assert_array_equal(frame, turned(expected))


MP4 = encode()
SOUND_ONLY = io.BytesIO()
with av.open(SOUND_ONLY, "w", format="mp4") as output:
    sound = output.add_stream("aac", rate=8_000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), "fltp", "mono")
    silence.sample_rate = 8_000
    output.mux(sound.encode(silence))
    output.mux(sound.encode())

BAD: dict[str, tuple[bytes, type[MediaError]]] = {
    "brand alone": (MP4[:32], ImageCorruptError),
    "index cut off": (MP4[:-400], ImageCorruptError),
    "half": (encode(options={"movflags": "faststart"})[:-900], ImageTruncatedError),
    "noise": (MP4[:32] + np.random.default_rng(0).bytes(5_000), ImageCorruptError),
    "mkv of nothing": (b"\x1aE\xdf\xa3" + bytes(500), ImageCorruptError),
    "AVI of nothing": (b"RIFF\0\0\0\0AVI " + bytes(500), ImageCorruptError),
    "no video in it": (SOUND_ONLY.getvalue(), ImageFormatError),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_video_is_told_in_words_of_ours(name: str) -> None:
    data, error = BAD[name]
    with pytest.raises(error) as caught:
        load_video(data)
    assert type(caught.value) is error
    assert "Errno" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "error"), [("libx264", ImageTooLargeError), ("mpeg4", ImageCorruptError)]
)
def test_video_of_too_many_pixels_is_not_decoded(
    codec: str, error: type[MediaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the size stands in the frames alone, the decoder itself refuses.
    data = encode(codec=codec)
    for max_pixels, is_allowed in ((100_000, True), (64 * 48 - 1, False)):
        config = PytorchEngineConfig(max_image_pixels=max_pixels)
        monkeypatch.setattr(video_file, "PytorchEngineConfig", lambda config=config: config)
        if is_allowed:
            assert len(load_video(data)[0]) == NUM_FRAMES
        else:
            with pytest.raises(error):
                load_video(data)


def test_video_of_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "MAX_VIDEO_PIXELS", NUM_FRAMES * 64 * 48 - 1)
    with pytest.raises(ImageTooLargeError, match="too many to decode"):
        load_video(MP4)
    assert len(load_video(MP4, num_frames=1)[0]) == 1


@pytest.mark.parametrize(
    ("max_pixels", "error"), [(1_000_000, ImageFormatError), (20_000, ImageCorruptError)]
)
def test_frame_larger_than_its_header_says_is_refused_and_above_the_limit_not_decoded(
    max_pixels: int, error: type[MediaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libvpx", rate=RATE, width=64, height=48)
        stream.pix_fmt = "yuv420p"
        for time, side in enumerate((64, 400)):
            encoder = av.CodecContext.create("libvpx", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            encoder.width, encoder.height, encoder.pix_fmt = side, side * 3 // 4, "yuv420p"
            encoder.time_base = Fraction(1, RATE)
            frame = av.VideoFrame(side, side * 3 // 4, "yuv420p")
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                packet.pts = packet.dts = time * 100
                packet.time_base = Fraction(1, 1_000)
                output.mux(packet)
    config = PytorchEngineConfig(max_image_pixels=max_pixels)
    monkeypatch.setattr(video_file, "PytorchEngineConfig", lambda: config)
    with pytest.raises(error):
        load_video(file.getvalue())


def test_demuxer_is_ours_to_choose_and_opens_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    real_open = av.open

    def record(*args: Any, **options: Any) -> Any:
        opened.append(options)
        return real_open(*args, **options)

    monkeypatch.setattr(av, "open", record)
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    for data, container in (
        (b"\0\0\0\x10ftyp" + playlist, "mp4"),
        (b"\x1aE\xdf\xa3" + playlist, "matroska"),
        (b"RIFF\0\0\0\0AVI " + playlist, "avi"),
    ):
        with pytest.raises((ImageCorruptError, ImageFormatError)):
            load_video(data)
        assert opened[-1]["format"] == container
        assert opened[-1]["options"]["protocol_whitelist"] == "none"
    with pytest.raises(ImageFormatError):
        load_video(playlist)
    assert len(opened) == 3


def test_without_the_decoder_the_message_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from vlmflow_engine.errors import UnsupportedFeatureError\n"
        "from vlmflow_engine.vl import load_video\n"
        "try: load_video(b'\\0\\0\\0\\x18ftypisom')\n"
        "except UnsupportedFeatureError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'vlmflow[video]'" in done.stdout
