"""Whoever is asked, a vision tower's attention is the same; who is asked stands in a table."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels import vit_attention as module
from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.kernels.varlen_attention import varlen_attention_reference
from vlmflow_engine.kernels.vit_attention import (
    BUCKETS,
    FASTEST,
    Backend,
    default,
    fastest,
    torch_attention,
    vit_attention,
)

RUNS = ([(2, 17)], [(1, 40), (3, 9), (1, 1)], [(4, 64), (1, 32)], [(1, 70), (2, 3)])


def draw(runs: list[tuple[int, int]], head_dim: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lengths = [length for count, length in runs for _ in range(count)]
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 3, 2, head_dim, generator=generator)
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return *qkv.unbind(1), starts


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked, in order."""
    from vlmflow_engine.kernels import varlen_attention as kernel

    asked: list[str] = []

    def noted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object) -> Tensor:
            asked.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(kernel, "varlen_attention", noted("triton", kernel.varlen_attention))
    monkeypatch.setattr(module, "torch_attention", noted("torch", torch_attention))
    return asked


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("runs", RUNS, ids=str)
def test_every_backend_computes_the_same(runs, backend, launches, monkeypatch):
    for bucket in BUCKETS:
        monkeypatch.setitem(FASTEST, (16, bucket, False), backend)
    q, k, v, starts = draw(runs)
    with interpreting():
        out = vit_attention(q, k, v, runs, starts, is_one_size=False)
    assert launches == ["triton" if backend is Backend.TRITON else "torch"]
    assert out.is_contiguous()
    expected = varlen_attention_reference(q, k, v, starts)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("runs", RUNS, ids=str)
def test_torch_is_asked_run_by_run_where_there_are_no_kernels(runs):
    q, k, v, starts = draw(runs)
    out = torch_attention(q, k, v, runs)
    assert out.is_contiguous()
    expected = varlen_attention_reference(q, k, v, starts)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_what_was_measured_comes_before_the_default(monkeypatch):
    monkeypatch.setitem(FASTEST, (80, 1024, True), Backend.TRITON)
    lengths = {length: fastest(80, length, is_one_size=True, architecture=90) for length in
               (256, 257, 1024, 1025)}  # fmt: skip
    assert lengths == {
        256: Backend.CUDNN,
        257: Backend.TRITON,
        1024: Backend.TRITON,
        1025: Backend.CUDNN,
    }
    assert fastest(64, 1024, is_one_size=True, architecture=90) is Backend.CUDNN


def test_a_segment_longer_than_all_buckets_counts_as_the_last(monkeypatch):
    monkeypatch.setitem(FASTEST, (80, BUCKETS[-1], False), Backend.FLASH)
    assert fastest(80, 10**6, is_one_size=False, architecture=90) is Backend.FLASH


def test_images_of_their_own_sizes_are_never_planned_by_cudnn_unasked():
    assert default(is_one_size=False, architecture=90) is Backend.TRITON
    assert default(is_one_size=True, architecture=90) is Backend.CUDNN
    assert default(is_one_size=True, architecture=80) is Backend.FLASH


def test_the_order_of_torchs_backends_is_given_back():
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    q, k, v, starts = draw([(1, 5)])
    with interpreting():
        vit_attention(q, k, v, [(1, 5)], starts, is_one_size=True)
    after = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    assert after == before
