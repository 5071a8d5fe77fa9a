"""Weights lie one behind another, and apart from one another."""

import pytest
import torch

from tests.tiny_llava import CPU
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.models import slabs
from vlmflow_engine.models.slabs import Slabs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matrices_taken_one_after_another_are_merged_without_a_copy(dtype):
    memory = Slabs(dtype, CPU)
    parts = []
    for rows in (8, 4, 4):  # and a bias between any two of them
        weight, bias = memory.empty((rows, 32)), memory.empty((32 * rows,))[:rows]
        parts.append(Linear(weight.normal_(), None))
        bias.zero_()
    expected = torch.cat([part.matrix for part in parts])
    merged = Linear.merged(parts)
    assert torch.equal(merged.matrix, expected) and merged.matrix.is_contiguous()
    assert merged.matrix.data_ptr() == parts[0].matrix.data_ptr()


def test_biases_taken_one_after_another_are_merged_without_a_copy():
    memory = Slabs(torch.float32, CPU)
    parts = [Linear(memory.empty((16, 4)).normal_(), memory.empty((16,)).normal_()) for _ in "qkv"]
    merged = Linear.merged(parts)
    assert torch.equal(merged.bias, torch.cat([part.bias for part in parts]))
    assert merged.bias.data_ptr() == parts[0].bias.data_ptr()


@pytest.mark.parametrize("order", [(0, 2), (1, 0), (0, 0)], ids=str)
def test_what_does_not_lie_one_behind_another_is_copied_together(order):
    memory = Slabs(torch.float32, CPU)
    weights = [memory.empty((4, 16)).normal_() for _ in range(3)]
    chosen = [weights[index] for index in order]
    merged = Linear.merged([Linear(weight) for weight in chosen]).matrix
    assert torch.equal(merged, torch.cat(chosen))
    assert merged.data_ptr() != chosen[0].data_ptr()


def test_tensors_of_any_size_are_aligned_and_do_not_overlap(monkeypatch):
    monkeypatch.setattr(slabs, "_SLAB_BYTES", 1024)
    memory = Slabs(torch.bfloat16, CPU)
    shapes = [(3, 5), (7,), (), (0, 4), (1, 1), (500, 1), (513, 2), (30, 17), (33,)] * 3
    tensors = [memory.empty(shape).fill_(n) for n, shape in enumerate(shapes)]
    for n, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape and tensor.data_ptr() % 64 == 0 and (tensor == n).all()
