"""Reported log probabilities, against torch's own of the model's logits."""

import pytest
import torch
from torch import Tensor

from tests.engine.runner.sequences import make_sequence
from vlmflow_engine.runner.sampler import sample

LOGITS = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3
LIKELY = LOGITS.argsort(descending=True).tolist()
OF_MODE = {
    None: LOGITS.log_softmax(dim=-1),
    "raw_logprobs": LOGITS.log_softmax(dim=-1),
    "raw_logits": LOGITS,
}


def test_nothing_is_reported_unless_asked_for():
    (token,) = sample(LOGITS[None], [make_sequence()])
    assert token.logprobs is None


@pytest.mark.parametrize("mode", OF_MODE)
@pytest.mark.parametrize("count", [0, 1, 5, 40, 41])
def test_the_chosen_token_comes_first_and_the_likeliest_follow_in_order(mode, count):
    sequences = [make_sequence(seed=seed, logprobs=count) for seed in range(100)]
    tokens = sample(LOGITS.repeat(100, 1), sequences, logprobs_mode=mode)
    assert len({token.token_id for token in tokens}) > 5
    for token in tokens:
        expected = [token.token_id, *(i for i in LIKELY[:count] if i != token.token_id)]
        assert token.logprobs is not None and list(token.logprobs) == expected
        values = torch.tensor(list(token.logprobs.values()))
        torch.testing.assert_close(values, OF_MODE[mode][expected])


def test_values_are_those_of_the_model_whatever_the_options_change():
    def invert(ids: Tensor, row: Tensor) -> Tensor:
        return -row

    sequence = make_sequence(
        do_sample=False, logprobs=2, logits_processors=[invert], bad_token_ids=LIKELY[-1:]
    )
    (token,) = sample(LOGITS[None], [sequence])
    assert token.token_id == LIKELY[-2]
    expected = {i: OF_MODE[None][i].item() for i in (LIKELY[-2], *LIKELY[:2])}
    assert token.logprobs == pytest.approx(expected)


def test_each_request_gets_as_many_as_it_asks_for():
    counts = [None, 3, 0, 7, None, 1]
    sequences = [make_sequence(do_sample=False, logprobs=count) for count in counts]
    tokens = sample(LOGITS.repeat(6, 1), sequences)
    sizes = [token.logprobs and len(token.logprobs) for token in tokens]
    assert sizes == [None, 3, 1, 7, None, 1]
