"""Log probabilities of the likeliest tokens, against log_softmax and a stable sort."""

import pytest
import torch

from vlmflow_engine.kernels.top_logprobs import top_logprobs, top_logprobs_reference


@pytest.mark.parametrize("count", [0, 1, 5, 131])
@pytest.mark.parametrize("vocab_size", [131, 4200])
def test_ids_are_those_of_a_stable_sort_and_values_those_of_log_softmax(vocab_size, count):
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(count)) * 4
    logits[1] = logits[1].bfloat16().float()
    logits[2] = 0.0
    chosen = torch.tensor([7, 130, 0])
    for is_raw in (False, True):
        ids, values = top_logprobs(logits, chosen, count, is_raw=is_raw)
        expected = top_logprobs_reference(logits, chosen, count, is_raw=is_raw)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(values, expected[1])


def test_a_row_with_a_nan_harms_no_other():
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = torch.nan
    ids, values = top_logprobs(logits, torch.tensor([-1, 4]), 3)
    expected = top_logprobs_reference(logits[1:], torch.tensor([4]), 3)
    assert torch.equal(ids[1:], expected[0])
    torch.testing.assert_close(values[1:], expected[1])
