"""A profile's time adds up: kernels that overlap count once, gaps count as idle."""

import pytest

from benchmarks.gpu.breakdown import Span, break_down, kind_of


def test_time_in_which_kernels_overlap_is_busy_once():
    found = break_down([Span("gemm_a", 0, 10), Span("gemm_b", 5, 20), Span("gemm_a", 30, 40)])
    assert found.seconds == pytest.approx(40e-6)
    assert found.busy_seconds == pytest.approx(30e-6)
    assert found.busy_share == pytest.approx(0.75)
    assert found.longest_gap == pytest.approx(10e-6)
    assert found.by_kind == {"products": pytest.approx(35e-6)}
    assert found.by_kernel["gemm_a"] == (2, pytest.approx(20e-6))


def test_a_kernel_inside_another_one_ends_nothing():
    found = break_down([Span("a", 0, 100), Span("b", 10, 20), Span("c", 90, 120)])
    assert found.busy_seconds == pytest.approx(120e-6)
    assert found.longest_gap == 0.0


def test_without_kernels_there_is_no_breakdown():
    assert break_down([]) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "products"),
        ("_decode_kernel", "paged decode"),
        ("_varlen_attention_kernel", "ViT attention"),
        ("_prefill_kernel", "paged prefill"),
        ("_store_kv_kernel", "store KV"),
        ("_rms_norm_kernel", "norms"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
        ("something_nobody_has_seen", "other"),
    ],
)
def test_kernels_are_known_by_their_names(name, kind):
    assert kind_of(name) == kind
