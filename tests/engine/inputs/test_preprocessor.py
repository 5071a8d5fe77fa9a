"""Prompts prepared on threads and in processes: every one is answered, faults and all."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.inputs.fetchers import FILE
from vlmflow_engine.errors import InvalidRequestError, MediaFetchError, RequestError
from vlmflow_engine.inputs.builder import InputBuilder, MediaFetcher, PreparedInput
from vlmflow_engine.inputs.preprocessor import (
    Prepared,
    Preprocessor,
    ThreadPreprocessor,
    attempt,
)
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor

Start = Callable[..., Preprocessor]


@pytest.fixture(scope="module", params=["thread", "process"])
def start_shared(request: pytest.FixtureRequest, spec: BuilderSpec) -> Iterator[Start]:
    started: dict[int, Preprocessor] = {}

    def start(num_workers: int = 1) -> Preprocessor:
        if num_workers not in started:
            started[num_workers] = (
                ProcessPreprocessor(spec, num_workers=num_workers)
                if request.param == "process"
                else ThreadPreprocessor(spec.make(), num_workers=num_workers)
            )
            started[num_workers].wait_until_ready()
        return started[num_workers]

    yield start
    for preprocessor in started.values():
        preprocessor.close()


@pytest.fixture
def start(start_shared: Start) -> Iterator[Start]:
    """Start a preprocessor that fetches by word, or take the one of an earlier test."""
    taken: list[Preprocessor] = []

    def start(num_workers: int = 1) -> Preprocessor:
        taken.append(start_shared(num_workers))
        return taken[-1]

    yield start
    for preprocessor in taken:
        preprocessor.cancel_all()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_prompt_comes_back_under_its_number(
    start: Start, builder: InputBuilder, num_workers: int
) -> None:
    preprocessor = start(num_workers)
    prompts = {number: ("shape " * (number % 7), FILE) for number in range(40)}
    for number, prompt in prompts.items():
        preprocessor.submit(number, prompt)
    results = dict(_take_all(preprocessor))
    assert results.keys() == prompts.keys()
    for number, prompt in prompts.items():
        prepared = results[number]
        assert isinstance(prepared, PreparedInput)
        assert prepared.token_ids == builder.build(prompt).token_ids


def test_nothing_is_taken_before_it_is_done(start: Start, tmp_path: Path) -> None:
    preprocessor = start()
    assert preprocessor.take(block=False) is None
    preprocessor.submit(7, ("What is it?", f"wait:{tmp_path / 'gate'}"))
    assert preprocessor.take(block=False) is None
    (tmp_path / "gate").touch()
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


def test_quick_prompt_overtakes_a_slow_one(start: Start, tmp_path: Path) -> None:
    preprocessor = start(2)
    preprocessor.submit(1, ("What is it?", f"wait:{tmp_path / 'gate'}"))
    preprocessor.submit(2, ("What is it?", "quick"))
    first = preprocessor.take(block=True)
    (tmp_path / "gate").touch()
    second = preprocessor.take(block=True)
    assert [item and item[0] for item in (first, second)] == [2, 1]


def test_workers_prepare_at_the_same_time(start: Start, tmp_path: Path) -> None:
    preprocessor = start(2)
    here, there = tmp_path / "here", tmp_path / "there"
    preprocessor.submit(1, ("What is it?", f"meet:{here}:{there}"))
    preprocessor.submit(2, ("What is it?", f"meet:{there}:{here}"))
    assert all(isinstance(prepared, PreparedInput) for _, prepared in _take_all(preprocessor))


def test_bad_prompt_comes_back_as_its_error_and_its_neighbours_go_on(start: Start) -> None:
    preprocessor = start()
    prompts = [("?", "gone"), 5, ("?", "here"), ("?", b"no picture"), "\ud800", ("?", "teapot")]
    for number, prompt in enumerate(prompts):
        preprocessor.submit(number, prompt)
    results = dict(_take_all(preprocessor))
    assert [getattr(results[number], "error_class", None) for number in range(len(prompts))] == [
        "image_unreachable",
        "invalid_request",
        None,
        "image_corrupt",
        "invalid_request",
        "image_unreachable",
    ]
    assert type(results[0]) is MediaFetchError
    assert type(results[1]) is InvalidRequestError
    assert [str(results[0]), str(results[5])] == ["scene.png is gone", "short and stout"]


@pytest.mark.parametrize("word", ["bug", "huge"])
def test_fault_of_ours_costs_one_request_and_tells_nothing_of_it(start: Start, word: str) -> None:
    preprocessor = start()
    if word == "huge" and isinstance(preprocessor, ThreadPreprocessor):
        pytest.skip("a thread has no limit of its own")
    preprocessor.submit(1, ("What is it?", word))
    preprocessor.submit(2, ("What is it?", "here"))
    results = dict(_take_all(preprocessor))
    assert type(results[1]) is RequestError
    assert {"bug": "KeyError", "huge": "MemoryError"}[word] in str(results[1])
    assert "secret" not in str(results[1])
    assert isinstance(results[2], PreparedInput)


def test_what_was_taken_back_never_comes_and_is_not_waited_for(
    start: Start, tmp_path: Path
) -> None:
    preprocessor = start()
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    for number in range(20):
        preprocessor.submit(number, ("What is it?", f"meet:{begun}:{gate}"))
    while not begun.exists():
        time.sleep(0.002)
    preprocessor.cancel_all()
    assert preprocessor.num_pending == 0
    assert preprocessor.take(block=True) is None
    preprocessor.submit(3, "the same number again")
    gate.touch()
    assert [number for number, _ in _take_all(preprocessor)] == [3]


class PanicError(BaseException):
    """As pyo3's PanicException: a fault in a library's Rust, and no Exception."""


@pytest.mark.parametrize("fault", [KeyError, MemoryError, RecursionError, PanicError])
def test_whatever_goes_wrong_is_a_request_error_and_is_logged_under_its_number(
    caplog: pytest.LogCaptureFixture, fault: type[BaseException]
) -> None:
    def work() -> None:
        raise fault("the contents of a secret file")

    with caplog.at_level(logging.ERROR):
        error = attempt(1, work)
    assert type(error) is RequestError
    assert fault.__name__ in str(error)
    assert "secret" not in str(error)
    assert "request 1" in caplog.text


def test_closing_waits_for_the_running_thread_and_ends_it(
    make_builder: Callable[..., InputBuilder],
) -> None:
    running, gate = threading.Event(), threading.Event()

    def fetch(source: Any) -> bytes:
        running.set()
        gate.wait(60)
        return FILE

    fetcher: MediaFetcher = fetch
    before = set(threading.enumerate())
    preprocessor = ThreadPreprocessor(make_builder(fetcher), num_workers=1)
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


def _take_all(preprocessor: Preprocessor) -> list[tuple[int, Prepared]]:
    taken = []
    while item := preprocessor.take(block=True):
        taken.append(item)
    return taken
