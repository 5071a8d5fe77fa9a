"""Adapters of a linear layer, against the same layer with the adapter in its weights."""

import pytest
import torch

from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows, LoraPart, LoraWeights

CPU = torch.device("cpu")
INPUTS, SIZES = 7, (4, 2, 3)


def make_part(out_features: int, rank: int, scaling: float = 0.5) -> LoraPart:
    return LoraPart(torch.randn(rank, INPUTS), torch.randn(out_features, rank), scaling)


def merge(parts: list[LoraPart | None], dtype: torch.dtype = torch.float32) -> LoraWeights:
    return LoraWeights.merged(parts, SIZES, dtype=dtype, device=CPU)


def make_layer(**adapters: list[LoraPart | None]) -> Linear:
    parts = [Linear(torch.randn(size, INPUTS), torch.randn(size)) for size in SIZES]
    layer = Linear.merged(parts)
    layer.adapters = {name: merge(parts) for name, parts in adapters.items()}
    return layer


def with_adapter(layer: Linear, parts: list[LoraPart | None]) -> Linear:
    """The layer that has the adapter in its weights."""
    deltas = [
        torch.zeros(size, INPUTS) if part is None else part.scaling * part.b @ part.a
        for part, size in zip(parts, SIZES, strict=True)
    ]
    return Linear(layer.matrix + torch.cat(deltas), layer.bias)


@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 5, 2), (None, 2, None), (3, None, 1)], ids=str)
def test_an_adapter_of_all_rows_is_the_layer_with_merged_weights(ranks):
    parts = [
        rank and make_part(size, rank, scaling=0.5 + rank)
        for size, rank in zip(SIZES, ranks, strict=True)
    ]
    layer = make_layer(red=parts)
    x = torch.randn(17, INPUTS)
    expected = with_adapter(layer, parts)(x)
    torch.testing.assert_close(layer(x, [AdapterRows("red", None)]), expected)
    torch.testing.assert_close(layer(x, [AdapterRows("red", torch.arange(17))]), expected)


def test_every_row_gets_its_own_adapter_or_none():
    parts = {name: [make_part(size, 2) for size in SIZES] for name in ("red", "blue")}
    layer = make_layer(**parts)
    x = torch.randn(6, INPUTS)
    rows = {"red": [5, 0], "blue": [2, 4]}
    y = layer(x, [AdapterRows(name, torch.tensor(rows)) for name, rows in rows.items()])
    for name, chosen in rows.items():
        torch.testing.assert_close(y[chosen], with_adapter(layer, parts[name])(x)[chosen])
    assert torch.equal(y[[1, 3]], layer(x)[[1, 3]])


def test_an_adapter_leaves_layers_alone_that_it_has_no_weights_for():
    layer = make_layer(red=[make_part(size, 2) for size in SIZES])
    x = torch.randn(6, INPUTS)
    assert torch.equal(layer(x, [AdapterRows("blue", None)]), layer(x))


def test_scaling_is_rounded_once():
    part = LoraPart(torch.randn(2, INPUTS), torch.randn(SIZES[1], 2).bfloat16(), 1 / 3)
    weights = merge([None, part, None], torch.bfloat16)
    expected = (part.b.float() / 3).bfloat16()
    assert torch.equal(weights.b[SIZES[0] : SIZES[0] + SIZES[1]], expected)
    assert torch.equal(weights.a, part.a.bfloat16())
    assert not weights.b[: SIZES[0]].any() and not weights.b[SIZES[0] + SIZES[1] :].any()
    assert weights.num_bytes == 2 * (2 * INPUTS + 2 * sum(SIZES))


def test_a_merged_layer_knows_the_names_of_its_parts():
    parts = [Linear(torch.randn(size, INPUTS), name=f"part{size}") for size in SIZES]
    assert Linear.merged(parts).parts == [("part4", 4), ("part2", 2), ("part3", 3)]
