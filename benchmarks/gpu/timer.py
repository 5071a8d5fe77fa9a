"""How long a call takes on a device: medians of runs that find nothing of theirs in L2."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# More than the 50 to 60 MB of a Hopper's L2, so that writing it evicts whatever was there.
_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """Measures calls on one device."""

    device: str  # "cuda", or "cpu" in a rehearsal
    warm_ups: int = 3  # compilation, and cuBLAS's choice among its kernels
    min_runs: int = 10
    max_runs: int = 100
    seconds: float = 0.3  # of one measurement, about

    def measure(self, call: Call) -> float:
        """Median seconds of a call."""
        for _ in range(self.warm_ups):
            call()
        return statistics.median(self._cuda(call) if self.device == "cuda" else self._cpu(call))

    def _cpu(self, call: Call) -> list[float]:
        times: list[float] = []
        while not self._is_enough(times):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times

    def _cuda(self, call: Call) -> list[float]:
        call = _captured(call)
        flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        times: list[float] = []
        while not self._is_enough(times):
            # Several at a time: a queue that runs empty would time the launch, not the kernel.
            events = [(_event(), _event()) for _ in range(self.min_runs)]
            torch.cuda.synchronize()
            for start, end in events:
                flush.zero_()
                start.record()
                call()
                end.record()
            torch.cuda.synchronize()
            times += [start.elapsed_time(end) / 1e3 for start, end in events]
        return times

    def _is_enough(self, times: list[float]) -> bool:
        if len(times) < self.min_runs:
            return False
        return len(times) >= self.max_runs or sum(times) >= self.seconds


def _captured(call: Call) -> Call:
    """The call as a CUDA graph, so that the host's work is not timed; itself if it cannot be."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # it waits for the device, or its kernel refuses a stream that records
        torch.cuda.synchronize()
        return call
    return graph.replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def quick_timer(device: str) -> Timer:
    """The timer of a command: thorough on a GPU, once or twice in a rehearsal."""
    if device == "cuda":
        return Timer(device=device)
    return Timer(device=device, warm_ups=0, min_runs=1, max_runs=2, seconds=0.0)
