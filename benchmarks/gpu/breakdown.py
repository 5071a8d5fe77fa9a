"""What a profile's device time went to: kinds of kernels, and the time in which none ran."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# The first that matches a kernel's name decides. Ours bear the names of kernels/<op>.py.
_KINDS: tuple[tuple[str, str], ...] = (
    ("paged decode", r"decode|merge_splits|work_list"),
    ("paged prefill", r"prefill"),
    ("ViT attention", r"varlen|flash|fmha|cudnn.*sdpa|attention"),
    ("store KV", r"store_kv|index_copy"),
    ("norms", r"rms_?norm|layer_?norm"),
    ("products", r"gemm|cutlass|nvjet|xmma|cublas|addmm|::_?linear|aten::mm|matmul|wgmma"),
    ("sampling", r"sampl|gumbel|topk|sort|argmax|softmax|penalt|bitmask|logprob"),
    ("activations", r"silu|gelu|mul_act|activation"),
    ("embeddings", r"embedding|index_select|gather|scatter|indexing"),
    ("copies", r"memcpy|memset|copy_kernel|aten::copy_"),
    ("elementwise", r"elementwise|vectorized|reduce|CatArray|aten::"),
)


@dataclass(frozen=True, slots=True)
class Span:
    """A kernel's run, in microseconds of one clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time between the first kernel's start and the last one's end went."""

    seconds: float
    busy_seconds: float  # in which at least one kernel ran
    by_kind: dict[str, float]  # seconds of kernels; more than busy where they overlap
    by_kernel: dict[str, tuple[int, float]]  # the longest ones: runs, seconds
    longest_gap: float  # seconds in which none ran

    @property
    def busy_share(self) -> float:
        return self.busy_seconds / self.seconds


def spans_of(events: Iterable[Any]) -> list[Span]:
    """The spans of a profile's events; parts of another event and marked ranges are left out."""
    found = [
        Span(event.name, float(event.time_range.start), float(event.time_range.end))
        for event in events
        if event.cpu_parent is None and not getattr(event, "is_user_annotation", False)
    ]
    return [span for span in found if span.end > span.start]


def break_down(spans: Iterable[Span], num_kernels: int = 25) -> Breakdown | None:
    """Sum up spans; None: there are none."""
    ordered = sorted(spans, key=lambda span: span.start)
    if not ordered:
        return None
    busy = longest_gap = 0.0
    end = ordered[0].start
    by_kind: dict[str, float] = {}
    by_kernel: dict[str, tuple[int, float]] = {}
    for span in ordered:
        longest_gap = max(longest_gap, span.start - end)
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
        seconds = (span.end - span.start) / 1e6
        kind = kind_of(span.name)
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
        runs, total = by_kernel.get(span.name, (0, 0.0))
        by_kernel[span.name] = (runs + 1, total + seconds)
    longest = sorted(by_kernel.items(), key=lambda item: -item[1][1])[:num_kernels]
    return Breakdown(
        seconds=(end - ordered[0].start) / 1e6,
        busy_seconds=busy / 1e6,
        by_kind=dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        by_kernel=dict(longest),
        longest_gap=longest_gap / 1e6,
    )


def kind_of(name: str) -> str:
    """What a kernel is for, by its name; "other" if that does not say."""
    for kind, pattern in _KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"
