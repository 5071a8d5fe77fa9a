"""The likeliest token, or a drawn one. Random numbers are stateless.

A draw depends on the request's seed and the token's position alone, so neither the batch a
sequence happens to be in, nor a preemption, nor a restart changes it.
"""

import struct
from collections.abc import Sequence as AbstractSequence
from hashlib import blake2b

import torch
from torch import Tensor

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.runner.ranking import likeliest_ids
from vlmflow_engine.sequence import Sequence

# Rows with such a top_k are ranked no further; of a vocabulary of 32,000 that takes a tenth of the
# time. One width for all of them: a row's rounding must not depend on its neighbours' top_k.
_NARROW = 128


def choose(logits: Tensor, sequences: AbstractSequence[Sequence]) -> Tensor:
    """Return the likeliest token of each greedy sequence, a drawn one of the others.

    logits  [num_sequences, vocab_size] float32; left as they are
    """
    chosen = logits.argmax(dim=-1)
    vocab_size = logits.shape[-1]
    rows_by_width: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        config = sequence.request.generation
        if not config.is_greedy:
            is_narrow = 0 < config.top_k <= _NARROW < vocab_size
            rows_by_width.setdefault(_NARROW if is_narrow else vocab_size, []).append(row)
    for width, rows in rows_by_width.items():
        chosen[rows] = _draw(logits[rows], [sequences[row] for row in rows], width)
    return chosen


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a position, the same on every machine."""
    digest = blake2b(struct.pack("<Qq", seed & (2**64 - 1), position), digest_size=8).digest()
    bits: int = struct.unpack("<Q", digest)[0]
    return (bits >> 11) * 2.0**-53


def _draw(logits: Tensor, sequences: list[Sequence], width: int) -> Tensor:
    """Temperature, top-k, top-p, min-p, then one draw from what is left; no top_k above width."""
    configs = [sequence.request.generation for sequence in sequences]
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    # Likeliest first, so that every filter keeps a prefix and its length is all there is to know.
    if width < logits.shape[-1]:
        order = likeliest_ids(logits, width)
        values = logits.gather(1, order)
    else:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
    values = values / column([config.temperature for config in configs])
    ranks = torch.arange(width, device=device)[None, :]
    values = values.masked_fill(ranks >= column([c.top_k or width for c in configs]), -torch.inf)
    probabilities = values.softmax(dim=-1)
    exact = probabilities.double()
    before = exact.cumsum(dim=-1) - exact  # the mass of all likelier tokens
    is_out = before > column([_top_p(config) for config in configs])
    is_out |= probabilities < column([c.min_p for c in configs]) * probabilities[:, :1]
    is_out[:, 0] = False
    kept = exact.masked_fill(is_out, 0.0).cumsum(dim=-1)
    draws = torch.tensor(
        [uniform(sequence.request.seed, sequence.num_drawn_tokens) for sequence in sequences],
        dtype=torch.float64,
        device=device,
    )[:, None]
    # The first token at which the kept mass exceeds the draw; the last kept one has all of it.
    chosen = (kept <= draws * kept[:, -1:]).sum(dim=-1, keepdim=True)
    return order.gather(1, chosen.clamp(max=width - 1)).squeeze(1)


def _top_p(config: GenerationConfig) -> float:
    # Rounded probabilities may add up to a little more than one.
    return config.top_p if config.top_p < 1 else torch.inf
