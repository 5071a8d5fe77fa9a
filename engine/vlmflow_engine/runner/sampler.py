"""From logits to token ids. Random numbers are stateless.

A draw depends on the request's seed and the token's position alone, so neither the batch a
sequence happens to be in, nor a preemption, nor a restart changes it.
"""

import struct
from collections.abc import Sequence as AbstractSequence
from hashlib import blake2b

import torch
from torch import Tensor

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.plan import SampledToken
from vlmflow_engine.sequence import Sequence


def sample(logits: Tensor, sequences: AbstractSequence[Sequence]) -> list[SampledToken]:
    """Choose the next token of each sequence.

    logits  [num_sequences, vocab_size] float32
    """
    greedy = logits.argmax(dim=-1)
    drawn = [
        index
        for index, sequence in enumerate(sequences)
        if not sequence.request.generation.is_greedy
    ]
    if drawn:
        greedy[drawn] = _draw(logits[drawn], [sequences[index] for index in drawn])
    # The step's only wait for the device.
    return [SampledToken(token_id) for token_id in greedy.tolist()]


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a position, the same on every machine."""
    digest = blake2b(struct.pack("<Qq", seed & (2**64 - 1), position), digest_size=8).digest()
    bits: int = struct.unpack("<Q", digest)[0]
    return (bits >> 11) * 2.0**-53


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Temperature, top-k, top-p, min-p, then one draw from what is left; LMDeploy's order."""
    configs = [sequence.request.generation for sequence in sequences]
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    # Likeliest first, so that every filter keeps a prefix and its length is all there is to know.
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    values = values / column([config.temperature for config in configs])
    ranks = torch.arange(values.shape[-1], device=device)[None, :]
    values = values.masked_fill(ranks >= column([_top_k(c, logits) for c in configs]), -torch.inf)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the mass of all likelier tokens
    is_out = before > column([config.top_p for config in configs])
    is_out |= probabilities < column([c.min_p for c in configs]) * probabilities[:, :1]
    is_out[:, 0] = False
    kept = probabilities.masked_fill(is_out, 0.0).double().cumsum(dim=-1)
    draws = torch.tensor(
        [uniform(sequence.request.seed, sequence.num_tokens) for sequence in sequences],
        dtype=torch.float64,
        device=device,
    )[:, None]
    # The first token at which the kept mass exceeds the draw; the last kept one has all of it.
    chosen = (kept <= draws * kept[:, -1:]).sum(dim=-1, keepdim=True)
    return order.gather(1, chosen.clamp(max=values.shape[-1] - 1)).squeeze(1)


def _top_k(config: GenerationConfig, logits: Tensor) -> int:
    return config.top_k or logits.shape[-1]
