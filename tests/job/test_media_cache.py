"""A cache on disk gives what was put or nothing, stays within its size, and harms nobody."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmflow.job.media_cache import CachedImage, MediaCache

BLOCK = 4096  # what an image counts at least


@pytest.fixture
def told() -> list[str]:
    """What was said to the user."""
    return []


Make = Callable[..., MediaCache]


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Make:
    """Open the folder as another process would."""
    return lambda max_bytes=1 << 20: MediaCache(tmp_path / "cache", max_bytes, told.append)


def put(cache: MediaCache, name: str, data: bytes, tag: str = "e1") -> CachedImage:
    digest = sha256(data).hexdigest()
    cache.put(name, data, digest, tag)
    cache.flush()
    return CachedImage(data, digest, tag)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def on_disk(folder: Path) -> int:
    inodes = {path.stat().st_ino: path.stat().st_size for path in files(folder)}
    return sum(-(-size // BLOCK) * BLOCK for size in inodes.values())


def let_be_used(cache_folder: Path, data: bytes, *, seconds_ago: float) -> None:
    """Set back the last use of an image, under all its names."""
    then = time.time() - seconds_ago
    digest = sha256(data).hexdigest()
    os.utime(cache_folder / "objects" / digest[0] / digest, (then, then))


def test_what_was_put_is_there_for_the_next_process(make: Make) -> None:
    assert make().get("s3://b/a.png") is None
    kept = put(make(), "s3://b/a.png", b"image")
    assert make().get("s3://b/a.png") == kept
    assert make().get("s3://b/b.png") is None


def test_name_stands_for_what_was_put_last(make: Make) -> None:
    cache = make()
    put(cache, "a", b"old", "e1")
    new = put(cache, "a", b"new", "e2")
    assert make().get("a") == new


def test_same_bytes_under_two_names_lie_there_once(make: Make, tmp_path: Path) -> None:
    cache = make()
    kept = [put(cache, name, bytes(9000)) for name in ("a", "b")]
    assert [cache.get("a"), cache.get("b")] == kept
    assert on_disk(tmp_path / "cache") == 3 * BLOCK


def test_same_bytes_with_two_tags_are_each_there(make: Make) -> None:
    cache = make()
    kept = [put(cache, name, b"image", tag) for name, tag in (("a", "e1"), ("b", "e2"))]
    assert [make().get("a"), make().get("b")] == kept


def test_no_name_is_readable_on_disk_and_nobody_else_may_look(make: Make, tmp_path: Path) -> None:
    put(make(), "https://host/a.png?signature=SECRET", b"image")
    for path in (tmp_path / "cache").rglob("*"):
        assert "SECRET" not in str(path)
        assert path.is_dir() or b"SECRET" not in path.read_bytes()
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["objects", "names"])
@pytest.mark.parametrize(
    "content", [b"", b"imag", b"IMAGE", b"[]", b"{}", b"\xff", b'{"sha256":"x","tag":"y"}']
)
def test_file_that_is_broken_is_no_hit_and_is_mended_by_the_next_put(
    make: Make, tmp_path: Path, kind: str, content: bytes
) -> None:
    put(make(), "a", b"image")
    [path] = files(tmp_path / "cache" / kind)
    path.write_bytes(content)
    cache = make()
    assert cache.get("a") is None
    kept = put(cache, "a", b"image")
    assert cache.get("a") == kept


def test_name_outlives_the_digest_and_without_a_name_nothing_is_found(
    make: Make, tmp_path: Path
) -> None:
    cache = make()
    kept = put(cache, "a", b"image")
    shutil.rmtree(tmp_path / "cache" / "objects")
    assert cache.get("a") == kept
    shutil.rmtree(tmp_path / "cache" / "names")
    assert cache.get("a") is None
    assert put(cache, "a", b"image") == cache.get("a")


def test_what_was_not_used_for_longest_goes_first(make: Make, tmp_path: Path) -> None:
    cache = make(8 * BLOCK)
    for number in range(8):
        put(cache, str(number), b"%d" % number)
        let_be_used(tmp_path / "cache", b"%d" % number, seconds_ago=800 - number)
    assert cache.get("0")
    put(cache, "8", b"8")  # room is made for it, and for an eighth of all
    assert [n for n in range(9) if cache.get(str(n))] == [0, 3, 4, 5, 6, 7, 8]


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 5 * BLOCK), max_size=25), max_blocks=st.integers(0, 20))
def test_folder_never_grows_beyond_its_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_blocks: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    told: list[str] = []
    cache = MediaCache(folder, max_blocks * BLOCK, told.append)
    for number, size in enumerate(sizes):
        kept = put(cache, str(number), number.to_bytes(2, "big") + bytes(size))
        assert on_disk(folder) <= max_blocks * BLOCK
        head = next(iter(files(folder)), None)
        size = len(kept.data) + (head.read_bytes().index(b"\n") + 1 if head else 100)
        assert cache.get(str(number)) == (kept if size <= max_blocks * BLOCK else None)
    assert told == []


def test_what_others_put_meanwhile_is_counted_too(make: Make, tmp_path: Path) -> None:
    limit = 64 * BLOCK
    caches = [make(limit), make(limit), make(limit)]
    for number in range(150):
        put(caches[number % 3], str(number), b"%d" % number)
    # Each may be a sixteenth beyond what it counted last.
    assert on_disk(tmp_path / "cache") <= limit + 3 * limit // 16


def test_temporary_files_of_the_dead_are_removed(make: Make, tmp_path: Path) -> None:
    put(make(), "a", b"image")
    abandoned, fresh = (tmp_path / "cache" / "objects" / f".tmp-{n}" for n in "12")
    for path in (abandoned, fresh):
        path.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    put(make(), "b", b"other")  # a process counts the folder before it writes
    assert not abandoned.exists()
    assert fresh.exists()


@contextmanager
def no_space() -> Iterator[None]:
    """Let every write of this process fail, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_turns_it_off_with_one_sentence(
    make: Make, tmp_path: Path, told: list[str]
) -> None:
    cache = make()
    put(cache, "a", b"image")
    with no_space():
        put(cache, "b", b"other")
        put(cache, "c", b"third")
    assert cache.get("b") is None
    [sentence] = told
    assert str(tmp_path / "cache") in sentence and "the job goes on" in sentence
    assert not [path for path in files(tmp_path / "cache") if path.name.startswith(".tmp-")]
    assert make().get("a")  # what was there stays, for others


def test_folder_that_cannot_be_made_turns_it_off_with_one_sentence(
    tmp_path: Path, told: list[str]
) -> None:
    (tmp_path / "file").touch()
    cache = MediaCache(tmp_path / "file" / "cache", 1 << 20, told.append)
    for name in ("a", "b"):
        put(cache, name, b"image")
        assert cache.get(name) is None
    assert len(told) == 1


def test_image_larger_than_the_whole_cache_is_not_kept_and_others_stay(
    make: Make, told: list[str]
) -> None:
    cache = make(4 * BLOCK)
    put(cache, "a", b"image")
    put(cache, "b", bytes(4 * BLOCK))
    assert cache.get("a") and cache.get("b") is None
    assert told == []


def test_threads_may_put_and_get_the_same_at_once(make: Make) -> None:
    cache = make(10 * BLOCK)  # too small for all: some are removed while others read

    def use(number: int) -> None:
        name, data = str(number % 15), b"%d" % (number % 15)
        found = cache.get(name)
        assert found is None or found.data == data
        put(cache, name, data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(600)))


def test_what_a_disk_is_too_slow_for_is_left_out_and_nobody_waits(make: Make) -> None:
    cache = make(1 << 30)
    may_go_on = Event()
    cache._writer.submit(may_go_on.wait, 10)  # a disk that does not answer
    for number in range(5):
        data = bytes([number]) * (10 << 20)
        cache.put(str(number), data, sha256(data).hexdigest(), "e")
    may_go_on.set()
    cache.flush()
    assert [n for n in range(5) if cache.get(str(n))] == [0, 1, 2]
    assert put(cache, "5", b"later") == cache.get("5")


WRITER = """
import sys
from hashlib import sha256
from pathlib import Path
from vlmflow.job.media_cache import MediaCache

cache = MediaCache(Path(sys.argv[1]), 1 << 30, print)
number = 0
while True:
    data = b"%d" % (number % 50) * 40_000
    cache.put(str(number % 50), data, sha256(data).hexdigest(), "e")
    cache.flush()
    number += 1
    print(number, flush=True)
"""


@pytest.mark.process
def test_writer_that_is_killed_leaves_nothing_that_holds_up_or_misleads_others(
    make: Make, tmp_path: Path
) -> None:
    cache = make(1 << 30)
    for _ in range(3):
        arguments = [sys.executable, "-c", WRITER, str(tmp_path / "cache")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                writer.stdout.readline()
            writer.kill()
    for number in range(50):
        found = cache.get(str(number))
        assert found is None or found.data == b"%d" % number * 40_000
        assert put(cache, str(number), b"new") == cache.get(str(number))
