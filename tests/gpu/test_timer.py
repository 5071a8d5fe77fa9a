"""Times are medians of enough runs, on a GPU from a graph, with the cache flushed before each."""

from types import SimpleNamespace

import pytest

from benchmarks.gpu import timer as module
from benchmarks.gpu.timer import Timer


class FakeCuda:
    """Stands in for torch.cuda: a clock that calls and flushes move on."""

    def __init__(self, is_capturable=True):
        self.clock, self.calls, self.flushes, self.captures = 0.0, 0, 0, 0
        self.is_capturable = is_capturable
        outer = self

        class Event:
            def record(self):
                self.at = outer.clock

            def elapsed_time(self, end):
                return end.at - self.at  # milliseconds

        class Graph:
            def __enter__(self):
                outer.captures += 1
                if not outer.is_capturable:
                    raise RuntimeError("operation not permitted when stream is capturing")
                self.before = outer.clock
                return self

            def __exit__(self, *_):
                outer.clock = self.before

            def replay(self):
                outer.call()

        class Flush:
            def zero_(self):
                outer.flushes += 1
                outer.clock += 100.0

        self.event = Event
        self.torch = SimpleNamespace(
            uint8=None,
            empty=lambda *_, **__: Flush(),
            cuda=SimpleNamespace(
                CUDAGraph=Graph, graph=lambda graph: graph, synchronize=lambda: None
            ),
        )

    def call(self):
        self.calls += 1
        # Every third run is disturbed.
        self.clock += 9.0 if self.calls % 3 == 0 else 2.0


@pytest.mark.parametrize("is_capturable", [True, False])
def test_the_flush_is_not_timed_and_an_outlier_does_not_count(monkeypatch, is_capturable):
    cuda = FakeCuda(is_capturable)
    monkeypatch.setattr(module, "torch", cuda.torch)
    monkeypatch.setattr(module, "_event", cuda.event)
    timer = Timer(device="cuda", warm_ups=2, min_runs=10, max_runs=40, seconds=0.1)
    assert timer.measure(cuda.call) == pytest.approx(2e-3)
    assert cuda.captures == 1
    assert cuda.flushes >= 20
    # Warm-ups, the capture if it succeeded, and as many runs as flushes.
    assert cuda.calls == 2 + is_capturable + cuda.flushes


def test_runs_go_on_until_there_are_enough():
    times = iter([0.0, 1.0, 1.0, 3.0, 3.0, 4.0])
    timer = Timer(device="cpu", warm_ups=0, min_runs=3, max_runs=3, seconds=100.0)
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        assert timer.measure(lambda: None) == 1.0
