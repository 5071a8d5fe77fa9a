"""gzip and zstd are known by content, take little memory, and break with one sentence."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest

from tests.job.dialects.manifests import LINES, PROMPT, read, reader
from tests.job.test_plan import with_growth
from vlmflow.job.dialects import BadLine
from vlmflow.job.dialects.compression import decompress
from vlmflow.job.errors import ManifestError, StoreError
from vlmflow.job.record import Record

LINE = json.dumps(LINES["native"]).encode()
PLAIN = b"".join(LINE.replace(b"r1", b"r%d" % n) + b"\n" for n in range(500))


def pack(data: bytes, codec: str) -> bytes:
    if codec == "gzip":
        return gzip.compress(data, 1)
    packed: bytes = pyarrow.compress(data, codec=codec, asbytes=True)
    return packed


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("data", [PLAIN, b"prompt,image\nx,a.png\n", b'[{"prefix":"s3://b/"},"a"]'])
def test_every_stream_of_text_may_be_packed(data: bytes, codec: str, tmp_path: Path) -> None:
    prompt = PROMPT if data.startswith(b"[") else None
    packed = reader(tmp_path, pack(data, codec), prompt=prompt)
    assert not packed.is_seekable
    items = list(packed.items())
    plain = reader(tmp_path, data, prompt=prompt)
    assert (packed.dialect, items) == (plain.dialect, list(plain.items()))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_stream_that_breaks_off_is_refused_after_what_it_holds(codec: str, tmp_path: Path) -> None:
    packed = pack(PLAIN, codec)
    for cut in (4, 12, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ManifestError, match=f"its {codec} stream ends too early"):
            list(reader(tmp_path, packed[:cut]).items())


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_broken_stream_is_refused(codec: str, tmp_path: Path) -> None:
    for data in (pack(PLAIN, codec) + b"more", pack(b"", codec)[:4] + b"\xff" * 50):
        with pytest.raises(ManifestError, match=f"its {codec} stream is broken"):
            list(reader(tmp_path, data).items())


def test_content_with_another_checksum_is_refused(tmp_path: Path) -> None:
    packed = bytearray(pack(PLAIN, "gzip"))
    packed[-6] ^= 1
    with pytest.raises(ManifestError, match="its gzip stream is broken"):
        list(reader(tmp_path, bytes(packed)).items())


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_small_file_of_a_huge_line_takes_little_memory(codec: str, tmp_path: Path) -> None:
    packed = pack(LINE + b"\n" + b"x" * (200 << 20) + b"\n" + LINE, codec)
    assert len(packed) < 1 << 20

    def read_all() -> list[type]:
        return [type(item) for item in read(tmp_path, packed)]

    types, growth = with_growth(read_all)
    assert types == [Record, BadLine, Record]
    assert growth < 120 << 20  # a line up to its limit, copied while it is put together


def test_error_of_the_store_passes_through_the_library() -> None:
    def chunks() -> Iterator[bytes]:
        yield gzip.compress(PLAIN)[:100]
        raise StoreError("gone")

    with pytest.raises(StoreError, match="gone"):
        list(decompress(chunks(), "gzip", "m"))
