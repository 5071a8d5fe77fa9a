"""How likely the tokens of a step were, before any option changed their logits."""

from collections.abc import Sequence as AbstractSequence

import torch
from torch import Tensor

from vlmflow_engine.runner.ranking import likeliest_ids
from vlmflow_engine.sequence import Sequence


def gather_logprobs(
    logits: Tensor,
    token_ids: list[int],
    sequences: AbstractSequence[Sequence],
    *,
    mode: str | None,
) -> dict[int, dict[int, float]]:
    """Return, by row, the value of the chosen token and after it those of the likeliest.

    With `logprobs=N` that are N likeliest tokens, the chosen one perhaps among them; with 0 it is
    the chosen one alone. Rows that ask for nothing, or have no token (-1), are left out.

    logits  [num_sequences, vocab_size] as the model gave them
    mode    "raw_logprobs", the same as None: the logarithm of the probability; "raw_logits"
    """
    counts: dict[int, int] = {}
    for row, sequence in enumerate(sequences):
        count = sequence.request.generation.logprobs
        if count is not None and token_ids[row] >= 0:
            counts[row] = min(count, logits.shape[-1])
    if not counts:
        return {}
    rows = list(counts)
    values = logits[rows]
    ids = torch.tensor([[token_ids[row]] for row in rows], device=logits.device)
    if (largest := max(counts.values())) > 0:
        ids = torch.cat([ids, likeliest_ids(values, largest)], dim=-1)
    if mode != "raw_logits":
        values = values.log_softmax(dim=-1)
    columns = zip(rows, ids.tolist(), values.gather(1, ids).tolist(), strict=True)
    return {
        row: dict(zip(row_ids[: 1 + counts[row]], row_values, strict=False))
        for row, row_ids, row_values in columns
    }
