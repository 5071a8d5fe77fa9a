"""How fast this machine multiplies and reads, at the shapes of the benchmark's model.

    python -m benchmarks.rates bfloat16|int8 NUM_THREADS CHECKPOINT [CONFIG as JSON]

Nothing is from a data sheet. A rate is the best of several tries and of every way to the result
that is known here, torch's and the engine's own layers: what a floor is made of must not be beaten
by a better call. Prints a line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine import PytorchEngineConfig
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.models.registry import read_config
from vlmflow_engine.runner.model_runner import ModelRunner

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
_MIN_TRIES, _MAX_TRIES, _ENOUGH_SECONDS = 2, 9, 4.0
_Gemm = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a dtype of weights allows."""

    vision_flops: float  # a second, in the vision tower's GEMMs
    decoder_flops: float  # a second, in the decoder's
    bandwidth: float  # bytes a second, of the packed weights as a GEMM of one row reads them
    weight_bytes: int  # that one step of decode reads: layers and head
    way: str  # that was fastest in the decoder


def main() -> None:
    dtype, num_threads, checkpoint, *more = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    config = json.loads(more[0]) if more else None
    print(json.dumps(asdict(measure_rates(dtype, Path(checkpoint), config))))


@torch.inference_mode()
def measure_rates(dtype: str, checkpoint: Path, config: dict[str, Any] | None) -> Rates:
    """Takes some seconds, and means what it says on a machine that does nothing else.

    config  of an engine that keeps its weights in that dtype; None: there is none
    """
    ways = dict(_WAYS[dtype])
    vision = min(_seconds(way(VISION_SHAPES, _ROWS)) for way in ways.values())
    layers, every = DECODER_SHAPES * LAYERS, DECODER_SHAPES * LAYERS + (HEAD_SHAPE,)
    seconds = {name: _seconds(way(layers, _ROWS)) for name, way in ways.items()}
    streamed = [_seconds(way(every, 1)) for way in ways.values()]
    if config is not None:
        decoder = _load_decoder(checkpoint, config)
        seconds["vlmflow's layers"] = _seconds(_through(decoder.linears, _ROWS))
        streamed.append(_seconds(_through([*decoder.linears, decoder.lm_head], 1)))
    best = min(seconds, key=lambda name: seconds[name])
    num_bytes = sum(inputs * outputs for inputs, outputs in every) * (1 if dtype == "int8" else 2)
    data = torch.ones(64 << 20, dtype=torch.float32)  # far more than the caches hold
    read = data.nbytes / _seconds(data.sum)
    return Rates(
        vision_flops=_ROWS * layer_flops(VISION_SHAPES) / vision,
        decoder_flops=_ROWS * layer_flops(layers) / seconds[best],
        bandwidth=max(num_bytes / min(streamed), read),
        weight_bytes=num_bytes,
        way=best,
    )


def layer_flops(shapes: Shapes) -> int:
    """Of one row through these GEMMs."""
    return sum(2 * inputs * outputs for inputs, outputs in shapes)


def _load_decoder(folder: Path, config: dict[str, Any]) -> Decoder:
    """As an engine has it: merged, packed, or in 8 bits."""
    # Of the cache no more than there must be.
    settings = PytorchEngineConfig(
        dtype="bfloat16", device_type="cpu", num_gpu_blocks=16, language_model_only=True, **config
    )
    decoder = ModelRunner(folder, read_config(folder, None), settings, None).model.decoder
    assert isinstance(decoder, Decoder)
    return decoder


def _through(linears: list[Linear], rows: int) -> _Gemm:
    widths = [int(linear.weight.shape[1]) for linear in linears]
    x = {width: torch.randn(rows, width).to(torch.bfloat16) for width in widths}
    return lambda: [linear(x[width]) for linear, width in zip(linears, widths, strict=True)]


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
    times: list[float] = []
    while len(times) < _MIN_TRIES or (len(times) < _MAX_TRIES and sum(times) < _ENOUGH_SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
