"""Tokens drawn by the kernels, in Triton's interpreter, against the host's sampler."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.runner.sequences import Spelling, make_sequence
from vlmflow_engine.runner.device_sampler import (
    DeviceSampler,
    needs_host,
    pack_masks,
    read_logprobs,
)
from vlmflow_engine.runner.sampler import sample
from vlmflow_engine.sequence import Sequence

VOCAB_SIZE = 1503


def make_any_sequence(rng: random.Random, vocab_size: int = VOCAB_SIZE) -> Sequence:
    """A request with any of the options that the device knows."""
    output = rng.choices(range(vocab_size), k=rng.randrange(30))
    options: dict[str, Any] = {
        "do_sample": rng.random() < 0.9,
        "temperature": rng.choice([0.0, 1e-60, 0.3, 0.8, 1.0, 1.5, 2.0]),
        "top_k": rng.choice([0, 0, 1, 2, 50, 127, 129, 500, 5000]),
        "top_p": rng.choice([1.0, 1.0, 0.0, 0.5, 0.9, 0.999]),
        "min_p": rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        "logprobs": rng.choice([None, None, 0, 1, 5, 20]),
    }
    if rng.random() < 0.4:
        options["repetition_penalty"] = rng.choice([0.7, 1.2, 3.0])
    if rng.random() < 0.3:
        options["bad_token_ids"] = rng.choices(range(2 * vocab_size), k=rng.randrange(400))
    if rng.random() < 0.5:
        options["min_new_tokens"] = rng.randrange(30)
    return make_sequence(
        seed=rng.randrange(-(2**63), 2**65),
        position=len(output) + rng.randrange(1, 4),
        output=output,
        banned=tuple((rng.randrange(vocab_size),) for _ in range(rng.randrange(3))),
        stop=rng.choices(range(vocab_size), k=rng.choice([0, 3, 300])),
        **options,
    )


def positions_of(sequences: list[Sequence]) -> Tensor:
    return torch.tensor([sequence.num_tokens for sequence in sequences], dtype=torch.int32)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_of_any_requests_are_those_of_the_hosts_sampler_step_by_step(seed):
    rng = random.Random(seed)
    sequences = [make_any_sequence(rng) for _ in range(6)]
    table_rows = rng.sample(range(16), k=6)
    sampler = DeviceSampler(16, VOCAB_SIZE, "cpu")
    for row in range(0, 16, 3):  # rows of others, from before
        sampler.set_row(row, make_any_sequence(rng))
    for row, sequence in zip(table_rows, sequences, strict=True):
        sampler.set_row(row, sequence)
    generator = torch.Generator().manual_seed(seed)
    differing = 0
    for step in range(2):
        logits = torch.randn(6, VOCAB_SIZE, generator=generator) * 2
        if step:  # as of a model in bfloat16, many are equal
            logits = logits.bfloat16().float()
        tokens = sample(logits, sequences)
        drawn = sampler.draw(
            logits, torch.tensor(table_rows, dtype=torch.int32), positions_of(sequences)
        )
        assert drawn.tolist() == [token.token_id for token in tokens]
        differing += int((drawn != logits.argmax(dim=-1)).sum())
        wanted = {
            row: sequence.request.generation.logprobs
            for row, sequence in enumerate(sequences)
            if sequence.request.generation.logprobs is not None
        }
        reported = read_logprobs(sampler.logprobs(logits, drawn, wanted, mode=None))
        for row, token in enumerate(tokens):
            assert (token.logprobs is None) == (row not in reported)
            if token.logprobs is not None:
                assert list(reported[row]) == list(token.logprobs)
                assert reported[row] == pytest.approx(token.logprobs, abs=1e-5)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(token.token_id)
    assert differing > 0


def test_a_row_is_drawn_alike_alone_and_among_others_and_padded_rows_draw_nothing():
    rng = random.Random(7)
    sequences = [make_any_sequence(rng) for _ in range(6)]
    logits = torch.randn(6, VOCAB_SIZE, generator=torch.Generator().manual_seed(7)) * 3
    sampler = DeviceSampler(6, VOCAB_SIZE, "cpu")
    for row, sequence in enumerate(sequences):
        sampler.set_row(row, sequence)
    rows = torch.tensor([0, -1, 2, 3, -1, 5], dtype=torch.int32)
    positions = positions_of(sequences)
    together = sampler.draw(logits.masked_fill(rows[:, None] < 0, torch.nan), rows, positions)
    assert together[[1, 4]].tolist() == [-1, -1]
    for row, sequence in enumerate(sequences):
        alone = DeviceSampler(1, VOCAB_SIZE, "cpu")
        alone.set_row(0, sequence)
        first = torch.zeros(1, dtype=torch.int32)
        (token,) = alone.draw(logits[row : row + 1], first, positions[row : row + 1]).tolist()
        assert together[row] in (token, -1)


def test_a_row_that_is_set_again_forgets_what_it_was():
    sampler = DeviceSampler(2, VOCAB_SIZE, "cpu")
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)).abs()
    likeliest = int(logits.argmax())
    rows = torch.ones(1, dtype=torch.int32)
    first = make_sequence(
        do_sample=False, output=[likeliest], repetition_penalty=100.0, bad_token_ids=[1], position=1
    )
    sampler.set_row(1, first)
    assert sampler.is_editing
    assert sampler.draw(logits, rows, positions_of([first])).item() != likeliest
    # Its own penalty, nothing seen yet: the first draw takes the token, the second one another.
    second = make_sequence(do_sample=False, repetition_penalty=100.0)
    sampler.set_row(1, second)
    drawn = [sampler.draw(logits, rows, positions_of([second])).item() for _ in range(2)]
    assert drawn[0] == likeliest != drawn[1]
    third = make_sequence(do_sample=False)
    sampler.set_row(1, third)
    assert not sampler.is_editing
    assert sampler.draw(logits, rows, positions_of([third])).item() == likeliest


def test_a_draw_does_not_change_the_models_logits():
    sequence = make_sequence(bad_token_ids=[3, 4], repetition_penalty=2.0, output=[7], position=2)
    sampler = DeviceSampler(1, VOCAB_SIZE, "cpu")
    sampler.set_row(0, sequence)
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    sampler.draw(logits, torch.zeros(1, dtype=torch.int32), positions_of([sequence]))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("do_sample", [False, True])
def test_grammars_masks_are_applied_to_their_rows(do_sample):
    allowed = [{5, 8, 1000}, {3}, {64, 65}]
    masks = np.zeros((3, VOCAB_SIZE), dtype=np.uint8)
    for row, ids in enumerate(allowed):
        masks[row, list(ids)] = 1
    words = pack_masks(np.packbits(masks, axis=1, bitorder="little"), VOCAB_SIZE)
    sampler = DeviceSampler(5, VOCAB_SIZE, "cpu")
    logits = torch.zeros(5, VOCAB_SIZE)
    sequences = []
    for row, grammar in enumerate([1, None, 0, 2, 0]):
        stop = [64, 65] if grammar == 2 else [5]  # stopping may be all that is left
        spelling = None if grammar is None else Spelling({i for i in allowed[grammar] if i < 64})
        sequences.append(make_sequence(do_sample=do_sample, seed=row, stop=stop, min_new_tokens=4))
        assert needs_host(make_sequence(grammar=spelling)) == (grammar is not None)
        sampler.set_row(row, sequences[-1])
    tokens = sampler.draw(
        logits,
        torch.arange(5, dtype=torch.int32),
        positions_of(sequences),
        allowed=torch.from_numpy(words),
        allowed_rows=torch.tensor([1, -1, 0, 2, 0], dtype=torch.int32),
    ).tolist()
    assert tokens[0] == 3 and tokens[1] != 5
    assert tokens[2] in (8, 1000) and tokens[3] in (64, 65) and tokens[4] in (8, 1000)


@pytest.mark.parametrize(
    ("options", "is_needed"),
    [
        ({}, False),
        ({"bad_token_ids": [1], "banned": ((2,),), "repetition_penalty": 2.0}, False),
        ({"min_new_tokens": 4, "stop": [1], "logprobs": 3}, False),
        ({"banned": ((1, 2),)}, True),
        ({"logits_processors": [lambda ids, row: row]}, True),
        ({"grammar": Spelling({1})}, True),
    ],
    ids=["nothing", "tokens", "stops", "sequences", "processors", "grammar"],
)
def test_the_host_is_needed_where_the_last_token_decides(options, is_needed):
    assert needs_host(make_sequence(**options)) == is_needed
