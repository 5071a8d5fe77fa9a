"""Prompts prepared on threads: every one is answered, faults and all."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine.errors import InvalidRequestError, MediaFetchError, RequestError
from vlmflow_engine.inputs.builder import InputBuilder, MediaFetcher, PreparedInput
from vlmflow_engine.inputs.preprocessor import Preprocessor

FILE = encode(noise(100, 100), "PNG")
Start = Callable[..., Preprocessor]


@pytest.fixture
def start(make_builder: Callable[..., InputBuilder]) -> Iterator[Start]:
    """Start preprocessors with a fetcher; they are closed when the test ends."""
    started: list[Preprocessor] = []

    def start_one(fetch: MediaFetcher = lambda source: FILE, num_workers: int = 1) -> Preprocessor:
        started.append(Preprocessor(make_builder(fetch), num_workers=num_workers))
        return started[-1]

    yield start_one
    for preprocessor in started:
        preprocessor.close()


@pytest.mark.parametrize("num_workers", [1, 4])
def test_every_prompt_comes_back_under_its_number(
    start: Start, builder: InputBuilder, num_workers: int
) -> None:
    preprocessor = start(num_workers=num_workers)
    prompts = {number: ("shape " * (number % 7), FILE) for number in range(40)}
    for number, prompt in prompts.items():
        preprocessor.submit(number, prompt)
    results = dict(_take_all(preprocessor))
    assert results.keys() == prompts.keys()
    for number, prompt in prompts.items():
        prepared = results[number]
        assert isinstance(prepared, PreparedInput)
        assert prepared.token_ids == builder.build(prompt).token_ids


def test_nothing_is_taken_before_it_is_done(start: Start) -> None:
    gate = threading.Event()
    preprocessor = start(lambda source: FILE if gate.wait(60) else b"")
    assert preprocessor.take(block=False) is None
    preprocessor.submit(7, ("What is it?", "slow"))
    assert preprocessor.take(block=False) is None
    gate.set()
    number, prepared = preprocessor.take(block=True) or (None, None)
    assert number == 7
    assert isinstance(prepared, PreparedInput)


def test_blocking_with_nothing_submitted_returns_at_once(start: Start) -> None:
    preprocessor = start()
    assert preprocessor.take(block=True) is None
    preprocessor.submit(1, "hi")
    assert preprocessor.take(block=True) is not None
    assert preprocessor.take(block=True) is None


def test_number_pending_is_what_is_submitted_and_not_taken(start: Start) -> None:
    preprocessor = start()
    for number in range(3):
        preprocessor.submit(number, "hi")
    left = []
    while preprocessor.take(block=True):
        left.append(preprocessor.num_pending)
    assert left == [2, 1, 0]


def test_quick_prompt_overtakes_a_slow_one(start: Start) -> None:
    gate = threading.Event()
    preprocessor = start(lambda source: FILE if source == "quick" or gate.wait(60) else b"", 2)
    preprocessor.submit(1, ("What is it?", "slow"))
    preprocessor.submit(2, ("What is it?", "quick"))
    first = preprocessor.take(block=True)
    gate.set()
    second = preprocessor.take(block=True)
    assert [item and item[0] for item in (first, second)] == [2, 1]


def test_workers_prepare_at_the_same_time(start: Start) -> None:
    both = threading.Barrier(2, timeout=60)
    preprocessor = start(lambda source: FILE if both.wait() >= 0 else b"", 2)
    for number in range(2):
        preprocessor.submit(number, ("What is it?", "scene.png"))
    assert all(isinstance(prepared, PreparedInput) for _, prepared in _take_all(preprocessor))


def test_bad_prompt_comes_back_as_its_error_and_its_neighbours_go_on(start: Start) -> None:
    def fetch(source: Any) -> bytes:
        if source == "gone":
            raise MediaFetchError("scene.png is gone")
        return FILE

    preprocessor = start(fetch)
    for number, prompt in enumerate([("?", "gone"), 5, ("?", "here")]):
        preprocessor.submit(number, prompt)
    results = dict(_take_all(preprocessor))
    assert [type(results[number]) for number in range(3)] == [
        MediaFetchError,
        InvalidRequestError,
        PreparedInput,
    ]
    assert str(results[0]) == "scene.png is gone"


class PanicError(BaseException):
    """As pyo3's PanicException: a fault in a library's Rust, and no Exception."""


@pytest.mark.parametrize("fault", [KeyError, MemoryError, RecursionError, PanicError])
def test_fault_of_ours_costs_one_request_and_tells_nothing_of_it(
    start: Start, caplog: pytest.LogCaptureFixture, fault: type[BaseException]
) -> None:
    def fetch(source: Any) -> bytes:
        if source == "bad":
            raise fault("the contents of a secret file")
        return FILE

    preprocessor = start(fetch)
    with caplog.at_level(logging.ERROR):
        preprocessor.submit(1, ("What is it?", "bad"))
        preprocessor.submit(2, ("What is it?", "good"))
        preprocessor.close()  # waits, so that a prompt without an answer is seen and not waited for
    results = dict(item for item in (preprocessor.take(block=False) for _ in range(2)) if item)
    error = results.get(1)
    assert type(error) is RequestError
    assert fault.__name__ in str(error)
    assert "secret" not in str(error)
    assert "request 1" in caplog.text


def test_closing_waits_for_what_is_running_and_ends_the_threads(start: Start) -> None:
    running, gate = threading.Event(), threading.Event()

    def fetch(source: Any) -> bytes:
        running.set()
        gate.wait(60)
        return FILE

    before = set(threading.enumerate())
    preprocessor = start(fetch)
    preprocessor.submit(1, ("What is it?", "scene.png"))
    assert running.wait(60)
    workers = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("vlmflow-preprocess")
    ]
    assert workers
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(preprocessor.close)
        assert not closing.done()
        gate.set()
        closing.result(60)
    assert not any(worker.is_alive() for worker in workers)
    assert preprocessor.take(block=False) is not None


def _take_all(preprocessor: Preprocessor) -> list[tuple[int, PreparedInput | RequestError]]:
    taken = []
    while item := preprocessor.take(block=True):
        taken.append(item)
    return taken
