"""The kernels' cases run in the interpreter, and a wrong answer does not pass."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.kernels import OPS, cases_of, measure_op, render
from benchmarks.kernels.problem import Problem, Scale, error_of
from tests.gpu.on_device import check_op

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OPS)
def test_a_toy_of_every_kernel_is_right(op):
    result = check_op(op, "cpu", seed=3)
    assert len(result["rows"]) == len(cases_of(op, Scale.TOY))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("scale", Scale)
def test_cases_have_names_of_their_own(op, scale):
    names = [case.name for case in cases_of(op, scale)]
    assert names
    assert len(names) == len(set(names))


def problem(run, tolerance=1e-6):
    want = torch.arange(6, dtype=torch.float64).view(2, 3)
    return Problem(run=run, reference=lambda: want, tolerance=tolerance)


def test_the_error_is_the_largest_difference_over_the_largest_number():
    got = torch.arange(6.0).view(2, 3)
    assert error_of(problem(lambda: got)) == 0.0
    got[0, 1] += 0.5
    assert error_of(problem(lambda: got)) == pytest.approx(0.1)


def test_what_a_launcher_forgets_to_write_is_found():
    with pytest.raises(AssertionError, match="NaN or infinite"):
        error_of(problem(lambda: torch.empty(2, 3)))


def test_another_shape_is_an_error():
    with pytest.raises(AssertionError, match=r"\(3, 2\) and not \(2, 3\)"):
        error_of(problem(lambda: torch.zeros(3, 2)))


def test_whole_numbers_must_be_equal():
    wrong = Problem(
        run=lambda: torch.tensor([1, 2]), reference=lambda: torch.tensor([1, 3]), tolerance=1.0
    )
    with pytest.raises(AssertionError, match="whole numbers differ"):
        error_of(wrong)


def test_a_wrong_kernel_is_named_with_its_seed(monkeypatch):
    case = cases_of("varlen_attention", Scale.TOY)[0]

    def make(device, seed):
        right = case.make(device, seed)
        return replace(right, run=lambda: 1.5 * right.reference().to(torch.float32))

    from tests.gpu import on_device

    monkeypatch.setattr(on_device, "cases_of", lambda op, scale: [replace(case, make=make)])
    with pytest.raises(AssertionError, match=r"with seed 5: float32, D 80: off by 5.0e-01"):
        check_op("varlen_attention", "cpu", seed=5)


def test_the_table_holds_a_row_a_case_and_the_best_peer(monkeypatch):
    case = cases_of("varlen_attention", Scale.TOY)[0]

    def make(device, seed):
        made = case.make(device, seed)

        def broken():
            raise RuntimeError("No available kernel")

        return replace(made, run=lambda: None, peers={"slow": made.reference, "none": broken})

    from benchmarks.gpu import kernels

    monkeypatch.setattr(kernels, "cases_of", lambda op, scale: [replace(case, make=make)])
    rates = {"copy_bytes": 4.3e12, "gemm_flops": 790e12}
    result = measure_op("varlen_attention", rates, "cpu")
    (row,) = result["rows"]
    assert row["peers"]["none"] == {"error": "RuntimeError: No available kernel"}
    assert row["peers"]["slow"]["seconds"] > 0
    table = render({"rates": rates, "varlen_attention": result})
    assert "Copy 4.30 TB/s, bf16 product 790 TFLOP/s." in table
    assert "| varlen_attention | float32, D 80 |" in table
    assert "| slow |" in table
