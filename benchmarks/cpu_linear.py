"""Linear layers of a CPU by torch, by oneDNN with packed weights, and by us.

python -m benchmarks.cpu_linear [--threads 2] [--shapes gate_up down] [--rows 1 64]

The layers are those of `benchmarks.workload`'s 0.27 B LLaVA, and one of a 7 B model. All ways of a
line are measured in turns in one process. With one thread the time is that of the thread, so that
other work on the machine counts little, and a number is a median; with more it is the clock's, and
the least of all.

    torch      F.linear over a matrix as it is stored
    transposed torch.mm over a matrix stored the other way round
    onednn     a matrix in oneDNN's layout
    ours       a matrix in the layout of kernels/cpu/linear.cpp
    int8_mm    torch's products of int8 matrices, without rounding and scales
    w8         torch's product with weights in 8 bits and inputs in bfloat16
    qlinear    oneDNN's product of rounded inputs, without the rounding and the scale of a row
    onednn8    the same with both, in plain torch: `OneDnnInt8Weight`
    ours8      the same in one call of ours: `Int8Weight`

"First" is what the first call with a number of rows costs above the second: oneDNN makes a
primitive for each.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.kernels.cpu.linear import linear_functions
from vlmflow_engine.layers.int8_weight import Int8Weight, OneDnnInt8Weight, quantise_rows
from vlmflow_engine.layers.packed_weight import OneDnnWeight, PackedWeight

SHAPES = {  # in_features, out_features
    "qkv": (1024, 1536),
    "o": (1024, 1024),
    "gate_up": (1024, 5632),
    "down": (2816, 1024),
    "lm_head": (1024, 32064),
    "vit_qkv": (384, 1152),
    "vit_fc1": (384, 1536),
    "patch": (588, 384),
    "7b": (2048, 11008),
}
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 577, 2048)
_SECONDS = 0.05  # of each way, for a number

Ways = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads; microseconds")
    with torch.inference_mode():
        for name in options.shapes:
            layer = Layer(*SHAPES[name])
            for make in (layer.bfloat16, layer.float32, layer.int8):
                _table(name, make, options.rows, options.threads)
            _first_calls(name, layer, options.rows)


class Layer:
    """A random layer in every form."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self._float = torch.randn(out_features, in_features) * 0.02
        self._half = self._float.bfloat16()
        self._bias = torch.randn(out_features).bfloat16()
        self._transposed = self._half.T.contiguous()
        self.onednn = OneDnnWeight(self._half)
        self._onednn_float = OneDnnWeight(self._float)
        self._onednn8 = OneDnnInt8Weight(self._half)
        self._codes, self._scales = quantise_rows(self._half)
        self._qlinear = torch.ops.onednn.qlinear_prepack(self._codes, None)
        self._zeros = torch.zeros(out_features, dtype=torch.int32)
        functions = linear_functions()
        self.ours = self._ours8 = None
        if functions is not None:
            self.ours = PackedWeight(self._half, functions, _allocate)
            self._ours8 = Int8Weight(self._half, functions, _allocate)

    def input(self, num_rows: int) -> Tensor:
        return torch.randn(num_rows, self._half.shape[1]).bfloat16()

    def bfloat16(self, num_rows: int) -> Ways:
        x, bias = self.input(num_rows), self._bias
        ways: Ways = {
            "torch": lambda: F.linear(x, self._half, bias),
            "transposed": lambda: torch.addmm(bias, x, self._transposed),
            "onednn": lambda: self.onednn(x, bias),
        }
        if (ours := self.ours) is not None:
            ways["ours"] = lambda: ours(x, bias)
        return ways

    def float32(self, num_rows: int) -> Ways:
        x, bias = self.input(num_rows).float(), self._bias.float()
        return {
            "torch": lambda: F.linear(x, self._float, bias),
            "onednn": lambda: self._onednn_float(x, bias),
        }

    def int8(self, num_rows: int) -> Ways:
        x, bias = self.input(num_rows), self._bias
        codes, _ = quantise_rows(x)
        shifted, scales = (codes ^ -128).view(torch.uint8), self._scales.bfloat16()
        ways: Ways = {
            "qlinear": lambda: torch.ops.onednn.qlinear_pointwise(
                shifted, 1.0, 0, self._qlinear, self._scales, self._zeros, None,
                1.0, 0, torch.bfloat16, "none", [], "",
            ),
            "onednn8": lambda: self._onednn8(x, bias),
        }  # fmt: skip
        if num_rows > 16:
            ways["int8_mm"] = lambda: torch._int_mm(codes, self._codes.T)
        if num_rows <= 64:
            ways["w8"] = lambda: torch._weight_int8pack_mm(x, self._codes, scales)
        if (ours := self._ours8) is not None:
            ways["ours8"] = lambda: ours(x, bias)
        return ways


def _allocate(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _table(name: str, make: Callable[[int], Ways], rows: list[int], num_threads: int) -> None:
    print(f"\n{name} {make.__name__}")
    for num_rows in rows:
        ways = make(num_rows)
        times = _measure(ways, num_threads)
        print(f"{num_rows:>6}", *(f"{way} {1e6 * s:>7.0f}  " for way, s in times.items()))


def _measure(ways: Mapping[str, Callable[[], object]], num_threads: int) -> dict[str, float]:
    """Seconds of each way, measured in turns."""
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    end = time.perf_counter() + _SECONDS * len(ways)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, way in ways.items():
            start = clock()
            way()
            times[name].append(clock() - start)
    choose = statistics.median if num_threads == 1 else min
    return {name: choose(seconds) for name, seconds in times.items()}


def _first_calls(name: str, layer: Layer, rows: list[int]) -> None:
    """What new numbers of rows cost, which nobody has asked for yet."""
    shown = []
    for way, weight in (("onednn", layer.onednn), ("ours", layer.ours)):
        if weight is not None:
            above = []
            for num_rows in {count + 3 for count in rows}:
                x, times = layer.input(num_rows), []
                for _ in range(2):
                    start = time.thread_time()
                    weight(x, None)
                    times.append(time.thread_time() - start)
                above.append(times[0] - times[1])
            shown.append(f"{way} {1e6 * statistics.median(above):.0f}")
    print(f"{name} first call above the second: {', '.join(shown)}")


if __name__ == "__main__":
    main()
