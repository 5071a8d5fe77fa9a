"""Attention over the paged cache on a CPU: the C++ kernels beside plain torch and the floor.

    python -m benchmarks.cpu_attention [--repeats 9] [--output FILE]

One thread, in CPU time, since other processes may share the machine; both engines in turns, medians
of the turns' ratios. Each gets the step that is laid out for it: what a layer does is timed, with
storing the step's keys and values. The floor of decoded tokens is the time that their keys and
values take to be read, at the bandwidth measured here; that of a chunk its products, at the rate of
a large torch GEMM of the same dtype.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels.paged_inputs import KV_FORMATS, PagedInputs, paged_inputs
from vlmflow_engine.kernels.cpu.attention import paged_attend
from vlmflow_engine.kernels.cpu.library import cpu_library
from vlmflow_engine.kernels.paged_attention import SequenceSpan, paged_attention, plan_attention

BLOCK_SIZE = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Case:
    """A step of equal sequences."""

    batch: int
    context_len: int
    new_tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    kv_format: str = "bf16"  # of KV_FORMATS; there bf16 is what is not quantised

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        stored = f", {self.kv_format} cache" if KV_FORMATS[self.kv_format] else ""
        what = "decode" if self.new_tokens == 1 else f"chunk of {self.new_tokens}"
        shape = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        return f"{what}, {self.batch} x {self.context_len:,}, {shape}, {dtype}{stored}"

    @property
    def flops(self) -> float:
        """Of both products, over what is seen."""
        unseen = self.new_tokens * (self.new_tokens - 1) / 2
        seen = self.new_tokens * self.context_len - unseen
        return 4.0 * self.batch * self.heads * self.head_dim * seen


CASES = [
    # The decoder of the 0.27 B LLaVA (benchmarks/workload.py) and those of 7 B models.
    *(Case(batch, 640, 1, 16, 4, 64) for batch in (1, 8, 48)),
    Case(48, 640, 1, 16, 4, 64, kv_format="int8"),
    Case(16, 640, 1, 16, 4, 64, dtype=torch.float32),
    Case(4, 4000, 1, 16, 4, 64),
    Case(16, 1000, 1, 32, 32, 128),
    Case(16, 1000, 1, 28, 4, 128),
    Case(1, 620, 620, 16, 4, 64),
    Case(1, 620, 620, 16, 4, 64, dtype=torch.float32),
    Case(8, 640, 40, 16, 4, 64),
    Case(8, 640, 40, 16, 4, 64, kv_format="int8"),
    Case(1, 2048, 2048, 28, 4, 128),
    Case(1, 2048, 512, 32, 32, 128),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="turns of each")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = cpu_library()
    if library is None:
        parser.error("there are no C++ kernels on this machine")
    bandwidth = _bandwidth()
    rates = {dtype: _gemm_rate(dtype) for dtype in (torch.bfloat16, torch.float32)}
    lines = [
        "# Attention over the paged cache on a CPU",
        "",
        f"One thread of a shared {_cpu_name()}, {library.level}, in CPU time; medians of "
        f"{options.repeats} turns. Python {platform.python_version()}, torch {version('torch')}.",
        "",
        f"The floor: {bandwidth / 1e9:.0f} GB/s read from memory for decoded tokens, and for "
        f"chunks GEMMs of {rates[torch.bfloat16] / 1e9:,.0f} GFLOP/s in bfloat16, "
        f"{rates[torch.float32] / 1e9:,.0f} in float32. A small cache is read faster than memory "
        "is.",
        "",
        "| step of one layer | plain torch, ms | C++, ms | faster | share of the floor |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for case in CASES:
        made = _make(case)
        ours, plain = _calls(case, made)
        pairs = _in_turns(ours, plain, options.repeats)
        seconds = statistics.median(own for own, _ in pairs)
        is_decode = case.new_tokens == 1
        floor = made.kv_bytes / bandwidth if is_decode else case.flops / rates[case.dtype]
        lines.append(
            f"| {case.name} | {statistics.median(other for _, other in pairs) * 1e3:.3f} "
            f"| {seconds * 1e3:.3f} | {statistics.median(b / a for a, b in pairs):.1f} x "
            f"| {floor / seconds:.0%} |"
        )
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


def _make(case: Case) -> PagedInputs:
    return paged_inputs(
        _CPU,
        0,
        context_lens=[case.context_len] * case.batch,
        num_new_tokens=[case.new_tokens] * case.batch,
        num_heads=case.heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        block_size=BLOCK_SIZE,
        dtype=case.dtype,
        kv_format=case.kv_format,
    )


def _calls(case: Case, made: PagedInputs) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One layer by the C++ kernels, and in plain torch."""
    shape = (len(made.q), case.kv_heads, case.head_dim)
    k, v = (torch.randn(shape).to(case.dtype) for _ in range(2))
    spans = [
        SequenceSpan(case.new_tokens, case.context_len, ids.tolist()) for ids in made.block_ids
    ]
    plan = plan_attention(spans, block_size=BLOCK_SIZE, device=_CPU)

    def ours() -> Tensor:
        return paged_attend(made.q, k, v, None, made.cache, made.metadata, scale=made.scale)

    def plain() -> Tensor:
        return paged_attention(made.q, k, v, made.cache, plan, made.scale)

    return ours, plain


def _in_turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> list[tuple[float, float]]:
    first(), second()
    return [(_seconds(first), _seconds(second)) for _ in range(repeats)]


def _seconds(call: Callable[[], object]) -> float:
    """Of CPU time; of short calls the mean of many."""
    count = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < 2e-3 or count == 0:
        call()
        count += 1
    return spent / count


def _bandwidth() -> float:
    """Bytes a second that one thread reads, over far more than the caches hold."""
    data = torch.ones(64 << 20, dtype=torch.float32)
    return data.nbytes / min(_seconds(data.sum) for _ in range(5))


def _gemm_rate(dtype: torch.dtype) -> float:
    x, weight = torch.randn(1024, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    seconds = min(_seconds(lambda: torch.nn.functional.linear(x, weight)) for _ in range(5))
    return 2 * 1024 * 2048 * 2048 / seconds


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
