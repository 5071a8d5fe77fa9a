"""How fast this machine multiplies and reads, at the shapes of the benchmark's model.

Nothing is from a data sheet. A rate is the best of several tries and of every way to the result
that torch has here: what a floor is made of must not be beaten by a better call.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 1024, 2816, 16, 16, 4, 64, 32_064
VISION_HIDDEN, VISION_INNER, VISION_LAYERS = 384, 1536, 11  # the twelfth is not run
Shapes = tuple[tuple[int, int], ...]  # (in, out) of a layer's merged GEMMs
DECODER_SHAPES: Shapes = (
    (HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    (HEADS * HEAD_DIM, HIDDEN),
    (HIDDEN, 2 * INNER),
    (INNER, HIDDEN),
)
VISION_SHAPES: Shapes = (
    (VISION_HIDDEN, 3 * VISION_HIDDEN),
    (VISION_HIDDEN, VISION_HIDDEN),
    (VISION_HIDDEN, VISION_INNER),
    (VISION_INNER, VISION_HIDDEN),
)
HEAD_SHAPE = (HIDDEN, VOCAB)
DTYPES = ("bfloat16", "int8")  # of the weights; int8 stands for W8A8
_ROWS = 2048  # of a GEMM: a full step of prefill, and a few images
_TRIES = 9
_Gemm = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a dtype of weights allows."""

    vision_flops: float  # a second, in the vision tower's GEMMs
    decoder_flops: float  # a second, in the decoder's
    bandwidth: float  # bytes a second, of the packed weights as a GEMM of one row reads them
    weight_bytes: int  # that one step of decode reads: layers and head
    way: str  # that was fastest in the decoder


def measure_rates(dtype: str, num_threads: int) -> Rates:
    """Takes some seconds, and means what it says on a machine that does nothing else."""
    torch.set_num_threads(num_threads)
    ways = _WAYS[dtype]
    vision = min(_seconds(way(VISION_SHAPES, _ROWS)) for way in ways.values())
    seconds = {name: _seconds(way(DECODER_SHAPES, _ROWS)) for name, way in ways.items()}
    best = min(seconds, key=lambda name: seconds[name])
    every = DECODER_SHAPES * LAYERS + (HEAD_SHAPE,)
    num_bytes = sum(inputs * outputs for inputs, outputs in every) * (1 if dtype == "int8" else 2)
    streamed = min(_seconds(way(every, 1)) for way in ways.values())
    data = torch.ones(64 << 20, dtype=torch.float32)  # far more than the caches hold
    read = data.nbytes / _seconds(data.sum)
    return Rates(
        vision_flops=_ROWS * layer_flops(VISION_SHAPES) / vision,
        decoder_flops=_ROWS * layer_flops(DECODER_SHAPES) / seconds[best],
        bandwidth=max(num_bytes / streamed, read),
        weight_bytes=num_bytes,
        way=best,
    )


def layer_flops(shapes: Shapes) -> int:
    """Of one row through these GEMMs."""
    return sum(2 * inputs * outputs for inputs, outputs in shapes)


def _plain(shapes: Shapes, rows: int) -> _Gemm:
    weights, x = _bfloat16(shapes, rows)
    return lambda: [torch.nn.functional.linear(x[w.shape[1]], w) for w in weights]


def _prepacked(shapes: Shapes, rows: int) -> _Gemm:
    weights, x = _bfloat16(shapes, rows)
    ops = torch.ops.mkldnn
    packed = [(w.shape[1], ops._reorder_linear_weight(w, rows)) for w in weights]
    return lambda: [ops._linear_pointwise(x[k], w, None, "none", [], "") for k, w in packed]


def _w8a8(shapes: Shapes, rows: int) -> _Gemm:
    """Rows quantised already: what that costs is no part of a floor."""
    x = {k: torch.randint(0, 256, (rows, k), dtype=torch.uint8) for k, _ in shapes}
    ops = torch.ops.onednn
    packed = []
    for inputs, outputs in shapes:
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
        packed.append((inputs, ops.qlinear_prepack(weight, [rows, inputs]), scales, zeros))

    def call() -> object:
        return [
            ops.qlinear_pointwise(
                x[k], 0.1, 0, w, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
            )
            for k, w, scales, zeros in packed
        ]

    return call


_WAYS: dict[str, dict[str, Callable[[Shapes, int], _Gemm]]] = {
    "bfloat16": {"plain": _plain, "prepacked": _prepacked},
    "int8": {"oneDNN W8A8": _w8a8},
}


def _bfloat16(shapes: Shapes, rows: int) -> tuple[list[Tensor], dict[int, Tensor]]:
    weights = [torch.randn(outputs, inputs).to(torch.bfloat16) for inputs, outputs in shapes]
    return weights, {k: torch.randn(rows, k).to(torch.bfloat16) for k, _ in shapes}


def _seconds(call: _Gemm) -> float:
    call()
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
