"""What the Triton kernels of a step are told: which slots are written, which blocks are read."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedMetadata:
    """Where a step's new tokens go and what each of them sees. Shared by all layers.

    The step's rows are sequences one after the other: first those with one new token each, then
    those with several. All tensors but `block_tables` are as long as the step is, and the launches
    depend on nothing else, so that a CUDA graph may be replayed with other contents.
    """

    slot_mapping: Tensor  # [num_tokens] int64; -1: stored nowhere, as of padded rows
    block_tables: Tensor  # [num_rows, blocks a row] int32
    table_rows: Tensor  # [num_sequences] int32: a sequence's row of block_tables
    # Tokens of a sequence that are stored once the step's own are. 0: a padded row, whose output
    # is zeros. [num_sequences] int32
    context_lens: Tensor
    query_starts: (
        Tensor  # [num_sequences + 1] int32: a sequence's first row of the step, and its end
    )
    num_decodes: int  # sequences with one new token each; they come first
    max_chunk_len: int  # new tokens of the longest other sequence; 0: there is none
    # Position behind the last token that each new token sees, where that is not its own: tokens of
    # an image that see the whole of it. [num_tokens] int32; None: causal
    visible_ends: Tensor | None = None
    # Whether a sequence's output must be the same bit by bit, whatever else is in the step.
    is_invariant: bool = False
    # What layers make of it for all those alike, such as a list of the decoding work; by its name.
    shared: dict[Any, Any] = field(default_factory=dict, compare=False)
