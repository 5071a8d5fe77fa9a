"""The likeliest token, or a drawn one. Random numbers are stateless.

A draw depends on the request's seed and the token's position alone, so neither the batch a
sequence happens to be in, nor a preemption, nor a restart changes it. It is the token with the
largest logit / temperature + noise of those that the filters keep (kernels/gumbel.py); of equals
the lowest id. `kernels/` has the same for a GPU.
"""

from collections.abc import Sequence as AbstractSequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.kernels.gumbel import gumbel, gumbel_of_all
from vlmflow_engine.runner.ranking import likeliest_ids
from vlmflow_engine.sequence import Sequence

# Rows with such a top_k are ranked no further; of a vocabulary of 32,000 that takes a tenth of the
# time. One width for all of them: a row's rounding must not depend on its neighbours' top_k.
_NARROW = 128


def choose(logits: Tensor, sequences: AbstractSequence[Sequence]) -> Tensor:
    """Return the likeliest token of each greedy sequence, a drawn one of the others.

    logits  [num_sequences, vocab_size] float32; left as they are
    Where none can be chosen, of a row with a NaN or of nothing but -inf, it is -1.
    """
    chosen = logits.argmax(dim=-1)
    largest = logits.gather(1, chosen[:, None])  # NaN where the row has one
    vocab_size = logits.shape[-1]
    narrow: list[int] = []
    for row, sequence in enumerate(sequences):
        config = sequence.request.generation
        if config.is_greedy:
            continue
        if 0 < config.top_k <= _NARROW < vocab_size:
            narrow.append(row)
        elif _keeps_all(config, vocab_size):
            chosen[row] = _draw_of_all(logits[row], largest[row], sequence)
        else:  # one by one: to sort many at once saves nothing
            width = config.top_k if 0 < config.top_k < vocab_size else vocab_size
            chosen[row] = _draw(logits[row : row + 1], [sequence], width)[0]
    if narrow:
        chosen[narrow] = _draw(logits[narrow], [sequences[row] for row in narrow], _NARROW)
    return torch.where(largest.squeeze(1) > -torch.inf, chosen, -1)


def seed_key(seed: int) -> int:
    """A request's seed as random numbers take it: its last 64 bits."""
    return seed & (2**64 - 1)


def _draw_of_all(logits: Tensor, largest: Tensor, sequence: Sequence) -> Tensor:
    """Draw from a whole row [vocab_size]: nothing needs to be ranked."""
    noise = gumbel_of_all(seed_key(sequence.request.seed), sequence.num_drawn_tokens, len(logits))
    values = _heated(logits, largest, sequence.request.generation.temperature)
    return (values + torch.from_numpy(noise).to(logits.device)).argmax()


def _draw(logits: Tensor, sequences: list[Sequence], width: int) -> Tensor:
    """Temperature, top-k, top-p, min-p, then one draw from what is left; no top_k above width."""
    configs = [sequence.request.generation for sequence in sequences]
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    # Likeliest first, so that every filter keeps a prefix and its length is all there is to know.
    order = likeliest_ids(logits, width)
    values = logits.gather(1, order)
    values = _heated(values, values[:, :1], column([config.temperature for config in configs]))
    ranks = torch.arange(width, device=device)[None, :]
    is_out = ranks >= column([config.top_k or width for config in configs])
    probabilities = values.masked_fill(is_out, -torch.inf).softmax(dim=-1)
    exact = probabilities.double()
    before = exact.cumsum(dim=-1) - exact  # the mass of all likelier tokens
    is_out |= before > column([_top_p(config) for config in configs])
    is_out |= probabilities < column([c.min_p for c in configs]) * probabilities[:, :1]
    is_out[:, 0] = False
    # Noise costs more than the rest where much is kept, and is made only there.
    kept = int((~is_out).sum(dim=-1).amax())
    order, is_out = order[:, :kept], is_out[:, :kept]
    noise = torch.from_numpy(_noise(order.cpu().numpy(), sequences, logits.shape[-1])).to(device)
    values = (values[:, :kept] + noise).masked_fill_(is_out, -torch.inf)
    is_best = values == values.amax(dim=-1, keepdim=True)
    return order.masked_fill(~is_best, logits.shape[-1]).amin(dim=-1)


def _heated(logits: Tensor, largest: Tensor, temperature: Tensor | float) -> Tensor:
    """Divide by the temperature, seen from the largest logit: no temperature is too small."""
    return torch.where(logits == largest, 0.0, (logits - largest) / temperature)


def _noise(
    token_ids: NDArray[np.int64], sequences: list[Sequence], vocab_size: int
) -> NDArray[np.float32]:
    """The noise of some tokens of each sequence [num_sequences, count]."""
    seeds = [seed_key(sequence.request.seed) for sequence in sequences]
    positions = [sequence.num_drawn_tokens for sequence in sequences]
    if token_ids.shape[1] * 4 <= vocab_size:
        return gumbel(np.array(seeds, np.uint64), np.array(positions, np.uint64), token_ids)
    return np.stack(
        [
            gumbel_of_all(seed, position, vocab_size)[ids]
            for seed, position, ids in zip(seeds, positions, token_ids, strict=True)
        ]
    )


def _keeps_all(config: GenerationConfig, vocab_size: int) -> bool:
    return (
        (config.top_k == 0 or config.top_k >= vocab_size)
        and config.top_p >= 1
        and config.min_p == 0
    )


def _top_p(config: GenerationConfig) -> float:
    # Rounded probabilities may add up to a little more than one.
    return config.top_p if config.top_p < 1 else torch.inf
