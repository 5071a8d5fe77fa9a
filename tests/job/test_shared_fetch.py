"""Who wants the same image at the same time waits for one fetch; failures are nobody's for long."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from threading import Barrier, Event, Lock

import pytest

from vlmflow.job.shared_fetch import ImageBytes, SharedFetches


def image(data: bytes) -> ImageBytes:
    return ImageBytes(data, sha256(data).hexdigest())


class Source:
    """Gives each URI's own text as its image, and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.may_go_on = Event()
        self.may_go_on.set()
        self.is_asked = Event()
        self._lock = Lock()

    def __call__(self, uri: str) -> ImageBytes:
        with self._lock:
            self.asked.append(uri)
        self.is_asked.set()
        assert self.may_go_on.wait(10)
        if self.error is not None:
            raise self.error
        return image(uri.encode())


@pytest.mark.parametrize("error", [None, ValueError("x")], ids=["image", "error"])
def test_threads_that_want_the_same_get_the_outcome_of_one_fetch(error: Exception | None) -> None:
    source, shared = Source(), SharedFetches(max_bytes=0)
    source.error = error
    source.may_go_on.clear()
    begun = Barrier(9)

    def get(uri: str) -> ImageBytes | Exception:
        begun.wait(10)
        try:
            return shared.get(uri, source)
        except ValueError as caught:
            return caught

    with ThreadPoolExecutor(9) as pool:
        results = [pool.submit(get, "a") for _ in range(8)] + [pool.submit(get, "b")]
        assert source.is_asked.wait(10)
        while len(shared._in_flight) < 2:
            pass
        source.may_go_on.set()
        outcomes = [result.result(10) for result in results]
    if error is None:
        assert outcomes == [image(b"a")] * 8 + [image(b"b")]
    else:
        assert outcomes == [error] * 9


def test_image_is_kept_until_others_need_the_room() -> None:
    source, shared = Source(), SharedFetches(max_bytes=30)
    for uri in ("a" * 10, "b" * 10, "c" * 10, "a" * 10, "d" * 10):
        shared.get(uri, source)
    assert len(source.asked) == 4
    shared.get("a" * 10, source)  # was used after b
    assert len(source.asked) == 4
    shared.get("b" * 10, source)
    assert source.asked[4:] == ["b" * 10]


def test_image_larger_than_all_the_room_is_not_kept_and_drives_nobody_out() -> None:
    source, shared = Source(), SharedFetches(max_bytes=30)
    for uri in ("a", "b" * 31, "a", "b" * 31):
        assert shared.get(uri, source).data == uri.encode()
    assert source.asked == ["a", "b" * 31, "b" * 31]


def test_error_is_not_kept() -> None:
    source, shared = Source(), SharedFetches()
    source.error = ValueError("x")
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            shared.get("a", source)
    source.error = None
    assert shared.get("a", source) == image(b"a")
    assert source.asked == ["a"] * 3
