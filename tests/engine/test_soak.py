"""Many small requests of every kind through one pipeline: each answered once, and nothing left."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.engine.handles import Handles, left_since
from tests.engine.traffic import Ask, Traffic
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, Response

# Caches small enough to be full before a quarter of the requests is answered.
CONFIG = PytorchEngineConfig(
    dtype="float32",
    device_type="cpu",
    num_gpu_blocks=400,
    encoder_cache_rows=1440,
    num_preprocess_workers=2,
)
ENDLESS = GenerationConfig(max_new_tokens=None, ignore_eos=True)


def leave_a_stream(pipe: Pipeline) -> None:
    for _ in pipe.stream_infer(["red", "blue"], gen_config=ENDLESS):
        break


def abort_a_turn(pipe: Pipeline) -> None:
    session = pipe.session()
    chunks = pipe.chat("red", session, ENDLESS, stream_response=True)
    next(chunks)
    session.abort()
    assert list(chunks)[-1].finish_reason == "abort"


def break_off_a_call(pipe: Pipeline) -> None:
    for response in pipe.iter_infer(["red", 5] * 20, ENDLESS, is_ordered=False):
        assert response.error_code == "invalid_request"
        break


INTERRUPTIONS = (leave_a_stream, abort_a_turn, break_off_a_call)


def answer_all(
    pipe: Pipeline, asks: list[Ask], *, is_ordered: bool, between: Callable[[int], None]
) -> dict[int, list[Response]]:
    """Ask from a generator; return the answers by request. `between` is told their number."""
    answers = defaultdict(list)
    prompts = (ask.make_prompt() for ask in asks)
    configs = [ask.config for ask in asks]
    responses = pipe.iter_infer(prompts, configs, is_ordered=is_ordered)
    for number, response in enumerate(responses, 1):
        response.logits = response.last_hidden_state = None
        answers[response.index].append(response)
        between(number)
    return answers


def wrong_answers(asks: list[Ask], answers: dict[int, list[Response]]) -> list[list[Response]]:
    """The answers of requests that did not get exactly what they must, each of them once."""
    assert set(answers) <= set(range(len(asks))), "answers to what nobody has asked"
    return [
        answers.get(index, [])
        for index, ask in enumerate(asks)
        if not _is_answered(ask, answers.get(index, []))
    ]


def _is_answered(ask: Ask, own: list[Response]) -> bool:
    codes = {response.error_code for response in own}
    # What fails before it is computed has one answer, whatever n is.
    expected = range(ask.config.n) if None in codes else range(1)
    return (
        [response.choice for response in sorted(own, key=lambda r: r.choice)] == list(expected)
        and codes <= ask.codes
        and all((r.error_code is None) == (r.finish_reason in ("stop", "length")) for r in own)
    )


class Memory:
    """Resident bytes of some processes over time."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._samples: list[list[int]] = []

    def look(self) -> None:
        self._samples.append([process.memory_info().rss for process in self._processes])

    def quarters(self) -> list[list[float]]:
        """Of each process the median of each quarter of the samples, in MiB."""
        size = len(self._samples) // 4
        return [
            [statistics.median(series[i * size : (i + 1) * size]) / 2**20 for i in range(4)]
            for series in zip(*self._samples, strict=True)
        ]


# From the second quarter to the last. Measured in two runs: -0.2 to 1.4 in the engine, 0.5 to 2.2
# in a worker. 1 KiB kept of each request would be 10; what failed requests once left behind was 29.
MAX_GROWTH_MIB = 8


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_20_000_requests_are_answered_once_in_memory_that_does_not_grow(tiny_llava: Path) -> None:
    num_requests, num_rounds = 20_000, 8
    traffic = Traffic(0)
    before = Handles.now()
    start, num_answers = time.monotonic(), 0
    with Pipeline(str(tiny_llava), CONFIG) as pipe:
        workers = Handles.now().children - before.children
        assert len(workers) == CONFIG.num_preprocess_workers
        memory = Memory([psutil.Process().pid, *workers])

        def between(number: int) -> None:
            if number % 50 == 0:
                memory.look()
            if number % 400 == 0:
                INTERRUPTIONS[number // 400 % 3](pipe)

        for number in range(num_rounds):
            asks = traffic.make(num_requests // num_rounds)
            answers = answer_all(pipe, asks, is_ordered=number % 2 == 0, between=between)
            assert wrong_answers(asks, answers) == []
            num_answers += sum(map(len, answers.values()))
        stats = pipe.stats
    seconds = time.monotonic() - start
    print(f"\n{num_requests} requests, {num_answers} answers: {num_requests / seconds:.0f}/s")
    for name, rss in zip(("engine", "worker", "worker"), memory.quarters(), strict=True):
        print(f"{name}: median RSS by quarter, MiB:", *(f"{value:.1f}" for value in rss))
    assert stats.num_failed > num_requests / 20
    assert stats.num_encoded_images > num_requests / 2
    for _, second, _, last in memory.quarters():
        assert last - second < MAX_GROWTH_MIB
    assert left_since(before) == []


def test_a_pipeline_that_was_interrupted_and_lost_a_worker_leaves_nothing(tiny_llava: Path) -> None:
    asks = Traffic(1).make(300)
    before = Handles.now()
    with Pipeline(str(tiny_llava), CONFIG) as pipe:
        during = Handles.now()
        victim = next(iter(during.children - before.children))

        def between(number: int) -> None:
            if number == 100:
                _kill(victim)
            if number % 80 == 0:
                INTERRUPTIONS[number // 80 % 3](pipe)

        answers = answer_all(pipe, asks, is_ordered=True, between=between)
        assert list(answers) == list(range(300))
        wrong = wrong_answers(asks, answers)
        # The prompt that the worker was in, if it was in one.
        assert [r.error_code for own in wrong for r in own] in ([], ["preprocess_failed"])
        assert victim not in Handles.now().children
    seen = {item.split()[0] for item in during.new_since(before)}
    assert seen >= {"child", "thread", "descriptor"}
    assert left_since(before) == []


def _kill(pid: int) -> None:
    """Kill a process and see it dead: until then it may be handed another prompt."""
    process = psutil.Process(pid)
    process.kill()
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "not dead in a minute"
            time.sleep(0.005)
