"""What a step of decoding is recorded with: a CUDA graph, or nothing at all."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Makes something that computes `body` again, on what its inputs hold by then."""

    def record(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return the replay.

        `body` reads tensors that stay where they are and returns one that every replay writes anew;
        no launch in it may depend on what is in them.
        """


class EagerRecorder:
    """Calls it again: where there are no graphs, or where nobody wants them."""

    def record(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return body


class CudaGraphRecorder:
    """CUDA graphs that share one pool of memory.

    Record the largest first: what the others need then fits into what it has left. A replay
    overwrites what the replay of another graph has returned, so it must be read before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # Triton compiles, and libraries allocate their workspaces, before anything is recorded.
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            body()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread of the process may use the GPU as it likes meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = body()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
