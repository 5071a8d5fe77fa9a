"""What sequences ask of their draws, on the device: a row for each that is running."""

from dataclasses import dataclass

import torch
from torch import Tensor

BITS_PER_WORD = 32


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """A row is a sequence's for as long as it runs. Columns share one tensor, and one stride."""

    options: Tensor  # [num_rows, columns] int32, what the columns below are views of
    # Each [num_rows].
    seed: Tensor  # int64: the seed's last 64 bits
    temperature: Tensor  # float32
    top_p: Tensor  # float32; 1: off
    min_p: Tensor  # float32; 0: off
    penalty: Tensor  # float32: repetition_penalty; 1: off
    top_k: Tensor  # int32; 0: the whole vocabulary; 1: greedy
    has_forbidden: Tensor  # int32: whether the row of `forbidden` counts
    may_stop_at: Tensor  # int32: the first position at which a stop token may stand; 0: any
    # Sets of tokens: token t is bit t % 32 of word t // 32. [num_rows, words] int32
    seen: Tensor  # generated so far, of rows with a penalty
    forbidden: Tensor  # never generated
    stops: Tensor  # that end the answer

    @property
    def option_stride(self) -> int:
        """From a row to the next, in numbers of 32 bits. Seeds have half of it."""
        return self.options.stride(0)


NUM_COLUMNS = 10  # a seed's two, seven more, and one to make rows of whole seeds


def allocate_sampling_table(
    num_rows: int, vocab_size: int, device: torch.device | str
) -> SamplingTable:
    """Make a table of greedy rows."""
    options = torch.zeros(num_rows, NUM_COLUMNS, dtype=torch.int32, device=device)
    floats = options.view(torch.float32)
    floats[:, 2:6] = torch.tensor([1.0, 1.0, 0.0, 1.0], device=device)
    options[:, 6] = 1
    masks = [
        torch.zeros(num_rows, num_words(vocab_size), dtype=torch.int32, device=device)
        for _ in range(3)
    ]
    return SamplingTable(
        options,
        options.view(torch.int64)[:, 0],
        *(floats[:, column] for column in range(2, 6)),
        *(options[:, column] for column in range(6, 9)),
        *masks,
    )


def num_words(vocab_size: int) -> int:
    """Words of a set of tokens."""
    return -(-vocab_size // BITS_PER_WORD)
