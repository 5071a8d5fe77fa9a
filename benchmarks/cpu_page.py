"""The page of results: what the runs that were kept say, as Markdown and as a plot."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_engines import Engine, describe
from benchmarks.cpu_summary import Summary, summarise, times_as_fast
from benchmarks.floor import Floor, floor_of, kv_bytes_at_once
from benchmarks.kept_runs import KeptRuns, Measurement
from benchmarks.rates import DECODER_SHAPES, HEAD_SHAPE, LAYERS, Rates, layer_flops
from benchmarks.request import BenchmarkRequest
from benchmarks.workload import NUM_PATCHES, Workload

MIB = 2**20
# A peer, what of ours stands against it, and how many times as fast that is meant to be.
_PAIRS = (
    ("transformers", "vlmflow", {"W1": 3.5, "W2": 8.0, "W3": 2.0, "W4": 3.0}),
    ("openvino", "vlmflow", {"W1": 1.15, "W2": 2.5, "W3": 1.2, "W4": 1.1}),
    ("openvino-int8", "vlmflow-int8", {"W1": 1.15, "W2": 2.5, "W3": 1.3, "W4": 1.1}),
)
# What of its vector instructions decides how fast a CPU is here.
_FLAGS = {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
_FLAGS |= {"amx_tile", "amx_bf16", "amx_int8"}
_MAX_BATCH = 64  # sequences in a step of ours on a CPU
_DECODER_WEIGHTS = (layer_flops(DECODER_SHAPES) * LAYERS + layer_flops((HEAD_SHAPE,))) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that was measured at this state of the sources."""

    runs: KeptRuns
    workloads: dict[Workload, list[BenchmarkRequest]]
    engines: dict[str, Engine]
    checkpoint_bytes: int
    num_threads: int
    commit: str  # that was measured

    def render(self) -> str:
        return "\n".join([*self._head(), *self._ratios(), *self._all_workloads(), *self._system()])

    def draw(self, path: Path) -> None:
        """Write the plot beside the page, if there is something to draw."""
        from benchmarks.cpu_plot import draw_bars

        bars = {
            workload.name: {
                self.engines[name].title: summary.records_per_second
                for name, summary in self._summaries(workload).items()
            }
            for workload in self.workloads
        }
        bars = {name: values for name, values in bars.items() if values}
        if bars:
            floors = {workload.name: self._floor_rate(workload) for workload in self.workloads}
            draw_bars(bars, floors, path)

    def runs_of(self, workload: Workload, engine: str) -> list[Measurement]:
        found: list[Measurement] = []
        while run := self.runs.get(f"{workload.name}-{engine}-run-{len(found)}"):
            found.append(run)
        return found

    def _summaries(self, workload: Workload) -> dict[str, Summary]:
        every = {name: self.runs_of(workload, name) for name in self.engines}
        return {name: summarise(runs) for name, runs in every.items() if runs}

    def _num_prompt_tokens(self, workload: Workload) -> int | None:
        """As the engines count them that do."""
        for name in self.engines:
            for run in self.runs_of(workload, name):
                if run["num_prompt_tokens"]:
                    return int(run["num_prompt_tokens"])
        return None

    def _rates(self, dtype: str) -> Rates | None:
        found = self.runs.get(f"rates-{dtype}")
        return Rates(**found) if found else None

    def _floor(self, workload: Workload, dtype: str) -> Floor | None:
        num_tokens, rates = self._num_prompt_tokens(workload), self._rates(dtype)
        if num_tokens is None or rates is None:
            return None
        return floor_of(self.workloads[workload], num_tokens, NUM_PATCHES, rates)

    def _floor_rate(self, workload: Workload) -> float | None:
        """Records a second that bfloat16 weights allow."""
        floor = self._floor(workload, "bfloat16")
        return workload.num_requests / floor.seconds if floor is not None else None

    def _head(self) -> Iterator[str]:
        yield "# CPU: vlmflow beside its peers"
        yield ""
        yield "Written by `make bench`; what is measured and how to read it: `docs/performance.md`."
        yield ""
        yield f"- {_cpu_name()}, {self.num_threads} threads, {_memory_gib():.0f} GiB; {_flags()}"
        yield f"- Python {platform.python_version()}, {self._versions()}"
        yield f"- commit {self.commit}"
        for dtype in ("bfloat16", "int8"):
            if rates := self._rates(dtype):
                yield (
                    f"- {dtype} weights: {rates.decoder_flops / 1e12:.2f} TFLOP/s in the decoder's "
                    f"GEMMs ({rates.way}), {rates.vision_flops / 1e12:.2f} in the vision tower's, "
                    f"{rates.bandwidth / 1e9:.0f} GB/s of packed weights"
                )
        yield ""

    def _versions(self) -> str:
        found: dict[str, str] = {}
        for workload in self.workloads:
            for name in self.engines:
                for run in self.runs_of(workload, name):
                    found |= run["versions"]
        return ", ".join(f"{name} {value}" for name, value in sorted(found.items()))

    def _ratios(self) -> Iterator[str]:
        names = [w.name for w in self.workloads if self._summaries(w)]
        if not names:
            return
        yield "## How many times as fast vlmflow is"
        yield ""
        yield "Medians of the pairs that ran one after the other; in brackets what is aimed at."
        yield ""
        yield f"| against | {' | '.join(names)} |"
        yield "|---" * (len(names) + 1) + "|"
        for peer, own, aims in _PAIRS:
            cells = [self._ratio(w, peer, own, aims) for w in self.workloads if w.name in names]
            if any(cell != "-" for cell in cells):
                title = self.engines[peer].title
                ours = "" if own == "vlmflow" else f", ours {self.engines[own].title.split()[-1]}"
                yield f"| {title}{ours} | {' | '.join(cells)} |"
        yield ""

    def _ratio(self, workload: Workload, peer: str, own: str, aims: dict[str, float]) -> str:
        ours, theirs = self.runs_of(workload, own), self.runs_of(workload, peer)
        count = min(len(ours), len(theirs))
        if not count:
            return "-"
        return f"**{times_as_fast(ours[:count], theirs[:count]):.2f}** ({aims[workload.name]})"

    def _all_workloads(self) -> Iterator[str]:
        for workload in self.workloads:
            if summaries := self._summaries(workload):
                yield from self._workload(workload, summaries)

    def _workload(self, workload: Workload, summaries: dict[str, Summary]) -> Iterator[str]:
        yield f"## {workload.name}: {workload.title}"
        yield ""
        counts = {len(self.runs_of(workload, name)) for name in summaries}
        yield f"{workload.about}; medians of {'/'.join(map(str, sorted(counts)))} runs."
        yield ""
        yield (
            "| engine | seconds | records/s | output tokens/s | share of the floor "
            "| start-up s | peak RSS MiB |"
        )
        yield "|---" * 7 + "|"
        for name, summary in summaries.items():
            engine = self.engines[name]
            floor = self._floor(workload, engine.weights)
            setting = self.runs_of(workload, name)[0]["setting"]
            title = engine.title + (f" ({describe(setting)})" if len(engine.settings) > 1 else "")
            yield (
                f"| {title} | {summary.seconds:.1f} | {summary.records_per_second:.2f} "
                f"| {summary.output_tokens_per_second:.1f} "
                f"| {f'{floor.seconds / summary.seconds:.0%}' if floor else '-'} "
                f"| {summary.load_seconds:.1f} | {summary.peak_rss_bytes / MIB:,.0f} |"
            )
        yield ""
        for dtype in sorted({self.engines[name].weights for name in summaries}):
            if floor := self._floor(workload, dtype):
                yield (
                    f"Floor, {dtype} weights: {floor.seconds:.1f} s = vision {floor.vision:.1f} + "
                    f"prefill {floor.prefill:.1f} + decode {floor.decode:.1f}."
                )
        for name in ("vlmflow", "vlmflow-int8"):
            if name in summaries:
                yield self._memory(workload, self.engines[name], summaries[name])
        yield ""

    def _memory(self, workload: Workload, engine: Engine, summary: Summary) -> str:
        weights = self.checkpoint_bytes
        if engine.weights == "int8":
            weights -= _DECODER_WEIGHTS  # one byte of two
        num_tokens = self._num_prompt_tokens(workload) or 0
        kv = kv_bytes_at_once(self.workloads[workload], num_tokens, NUM_PATCHES, _MAX_BATCH)
        allowed = 1.3 * weights + kv + 300e6
        return (
            f"Peak RSS of {engine.title}: {summary.peak_rss_bytes / (weights + kv):.2f} times "
            f"weights ({weights / MIB:,.0f} MiB) + KV of what runs at once ({kv / MIB:,.0f} MiB); "
            f"1.3 x weights + KV + 300 MB is {allowed / MIB:,.0f} MiB."
        )

    def _system(self) -> Iterator[str]:
        from benchmarks import job_shapes, scheduler

        sections: dict[str, Any] = {
            "W5": job_shapes.describe_job,
            "growth": job_shapes.describe_growth,
            "scheduler": scheduler.describe,
        }
        for part, section in sections.items():
            if found := self.runs.get(part):
                yield from section(found)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _flags() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            there = set(line.partition(":")[2].split())
            return " ".join(sorted(there & _FLAGS)) + ("" if "amx_tile" in there else ", no AMX")
    return platform.machine()


def _memory_gib() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / 2**30
