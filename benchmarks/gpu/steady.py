"""Steady decode through a Pipeline: how long a step takes while a full batch does nothing else.

The engine runs on its pipeline's own thread and counts as it goes; here its counts are looked at
from outside, so that nothing is measured which a user would not have.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.workload import GpuRequest

_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Window:
    """Some steps in which every sequence got one token."""

    num_steps: int
    seconds: float
    batch_size: int
    num_output_tokens: int
    mean_context: float  # tokens of a sequence, at the middle of the window

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.num_steps


class SteadyDecode:
    """Requests that decode together, watched while their answers are waited for."""

    def __init__(self, pipeline: Any, batch_size: int, answering: threading.Thread) -> None:
        self._pipeline = pipeline
        self._batch_size = batch_size
        self._answering = answering

    def wait_until_steady(self, timeout: float = 120.0) -> None:
        """Return once all decode and nothing is prefilled. Raises RuntimeError: never so."""
        deadline, last = time.monotonic() + timeout, -1
        while time.monotonic() < deadline:
            stats = self._pipeline.stats
            # A step after the last prompt's own is pure decode: prefilled tokens stay as they are.
            is_full = stats.num_running == self._batch_size
            before = (stats.num_steps, stats.num_prefill_tokens)
            if is_full and before[1] == last and self._has_stepped(before):
                return
            last = before[1]
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(
            f"{self._pipeline.stats.num_running} of {self._batch_size} sequences ran together "
            f"after {timeout:.0f} s"
        )

    def window(self, num_steps: int) -> Window:
        """Watch so many steps. Raises RuntimeError if sequences ended meanwhile."""
        stats = self._pipeline.stats
        first, tokens, start = stats.num_steps, stats.num_output_tokens, time.perf_counter()
        while self._pipeline.stats.num_steps < first + num_steps:
            if self._pipeline.stats.num_running != self._batch_size:
                break
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - start
        stats = self._pipeline.stats
        if stats.num_running != self._batch_size or stats.num_steps == first:
            raise RuntimeError(
                f"answers ended within {stats.num_steps - first} of the {num_steps} steps to be "
                "watched; let them be longer"
            )
        produced = stats.num_output_tokens - tokens
        prompt = stats.num_prompt_tokens / max(stats.num_finished + self._batch_size, 1)
        return Window(
            num_steps=stats.num_steps - first,
            seconds=seconds,
            batch_size=self._batch_size,
            num_output_tokens=produced,
            mean_context=prompt + (stats.num_output_tokens - produced / 2) / self._batch_size,
        )

    def profile(self, device: str, num_steps: int) -> list[Any]:
        """Events of so many steps, see `profiled`. Raises RuntimeError as `window` does."""

        def watch() -> None:
            self.window(num_steps)
            if device == "cpu":
                # Ended while another thread calls operators, torch's profiler may abort the
                # process. A rehearsal's numbers mean nothing, so it may see more steps.
                self._answering.join()

        return profiled(device, watch)

    def _has_stepped(self, before: tuple[int, int]) -> bool:
        time.sleep(_POLL_SECONDS)
        stats = self._pipeline.stats
        return bool(stats.num_steps > before[0] and stats.num_prefill_tokens == before[1])


@contextmanager
def steady_decode(
    pipeline: Any, requests: Sequence[GpuRequest], num_new_tokens: int
) -> Iterator[SteadyDecode]:
    """Let requests decode `num_new_tokens` each on a pipeline that has answered nothing yet.

    They are answered to their end before this is left.
    """
    from vlmflow_engine import GenerationConfig

    config = GenerationConfig(max_new_tokens=num_new_tokens, ignore_eos=True)
    prompts = [(request.text, request.image) for request in requests]
    failed: list[BaseException] = []

    def answer() -> None:
        try:
            check_answers(pipeline(prompts, config), [num_new_tokens] * len(prompts))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=answer, name="steady-decode")
    thread.start()
    try:
        yield SteadyDecode(pipeline, len(requests), thread)
    finally:
        thread.join()
    if failed:
        raise failed[0]


def check_answers(responses: Sequence[Any], lengths: Sequence[int]) -> None:
    """Raise RuntimeError unless every request has an answer of its length."""
    for response, length in zip(responses, lengths, strict=True):
        if response.error_message is not None:
            raise RuntimeError(f"a request failed: {response.error_message}")
        if response.generate_token_len != length:
            raise RuntimeError(f"{response.generate_token_len} tokens where {length} were asked")


def warm_up_profiler(device: str) -> None:
    """Let the profiler be set up, which takes seconds once, before something is in flight."""
    profiled(device, lambda: None)


def profiled(device: str, call: Callable[[], object]) -> list[Any]:
    """Events of torch's profiler on the device during a call, its own threads' or others'.

    On a CPU what counts as the device is the operators, of all threads.
    """
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if device == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        wanted = DeviceType.CUDA
    else:
        config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiler:
            call()
        wanted = DeviceType.CPU
    events = profiler.events() or []
    return [event for event in events if event.device_type == wanted]
