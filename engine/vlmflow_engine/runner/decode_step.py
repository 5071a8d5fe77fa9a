"""Steps in which every sequence computes the one token it has just drawn.

All that such a step reads is on the device already, in the rows of the sequence table: the host
sends the numbers of the rows, and nothing while they stay the same. So a step can be a CUDA graph,
recorded once for each size of batch in BATCH_SIZES; a smaller batch is padded with the table's
padding row, which writes no key and whose logits nobody reads.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.models.family import PagedDecoder
from vlmflow_engine.runner.recorder import Recorder
from vlmflow_engine.runner.sequence_table import SequenceTable
from vlmflow_engine.runner.transfer import upload_into

# A padded row costs what a row costs, a graph its memory and half a second: up to a third is padded
# in small batches, an eighth in large ones.
BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)


def batch_sizes(max_batch_size: int, *, is_padded: bool = True) -> tuple[int, ...]:
    """The sizes of batch that are recorded, the largest of them `max_batch_size`.

    is_padded  False: all of them, where a row costs more than a record of its own
    """
    if not is_padded:
        return tuple(range(1, max_batch_size + 1))
    sizes = [size for size in BATCH_SIZES if size < max_batch_size]
    sizes += range(160, max_batch_size, 32)
    return (*sizes, max_batch_size)


@dataclass(slots=True)
class _Recorded:
    rows: Tensor  # [size] int64, of the table
    replay: Callable[[], Tensor]  # logits [size, vocab_size]
    current: list[int]  # what `rows` holds, without padding


class DecodeStep:
    """One decoder's steps of decoding over one cache and one table."""

    def __init__(
        self,
        decoder: PagedDecoder,
        caches: list[LayerKVCache],
        table: SequenceTable,
        recorder: Recorder,
        *,
        sizes: tuple[int, ...],
        block_size: int,
        is_invariant: bool,
    ) -> None:
        self._decoder = decoder
        self._caches = caches
        self._table = table
        self._recorder = recorder
        self._block_size = block_size
        self._is_invariant = is_invariant
        self._sizes = sizes  # see `batch_sizes`
        self._recorded: dict[int, _Recorded] = {}  # by size of batch
        # Of all sizes: a graph that made its own would keep them, a gigabyte for all graphs.
        self._logits = torch.empty(
            sizes[-1],
            decoder.vocab_size,
            dtype=torch.float32,
            device=table.last_tokens.device,
        )

    def compute(self, rows: list[int]) -> Tensor:
        """Compute the last tokens of the table's `rows`; return logits [len(rows), vocab_size].

        They hold until the next call.
        """
        recorded = self._find(len(rows))
        if recorded.current != rows:
            padding = [self._table.padding_row] * (len(recorded.rows) - len(rows))
            upload_into(recorded.rows, rows + padding)
            recorded.current = list(rows)
        return recorded.replay()[: len(rows)]

    def rows_tensor(self, count: int) -> Tensor:
        """The rows of the last call with so many of them, on the device: [count] int64."""
        return self._find(count).rows[:count]

    def _find(self, count: int) -> _Recorded:
        size = self._sizes[bisect_left(self._sizes, count)]
        if size not in self._recorded:
            if not self._recorded and size < self._sizes[-1]:
                self._record(self._sizes[-1])  # the largest first: see CudaGraphRecorder
            self._record(size)
        return self._recorded[size]

    def _record(self, size: int) -> None:
        device = self._table.last_tokens.device
        rows = torch.full((size,), self._table.padding_row, dtype=torch.int64, device=device)
        all_rows = torch.arange(size + 1, device=device)
        replay = self._recorder.record(lambda: self._compute(rows, all_rows))
        self._recorded[size] = _Recorded(rows, replay, [])

    def _compute(self, rows: Tensor, all_rows: Tensor) -> Tensor:
        table, decoder = self._table, self._decoder
        num_tokens = table.num_tokens[rows]
        is_padding = num_tokens == 0
        places = (num_tokens - 1).clamp_(min=0)  # of the last tokens in their sequences
        blocks = table.block_tables[rows, places // self._block_size].long()
        slots = blocks * self._block_size + places % self._block_size
        positions = places
        if decoder.num_position_axes > 1:
            positions = (places + table.position_shifts[rows]).expand(decoder.num_position_axes, -1)
        metadata = PagedMetadata(
            slot_mapping=slots.masked_fill(is_padding, -1),
            block_tables=table.block_tables,
            table_rows=rows.int(),
            context_lens=num_tokens.int(),
            query_starts=all_rows.int(),
            num_decodes=len(rows),
            max_chunk_len=0,
            is_invariant=self._is_invariant,
        )
        hidden = decoder(
            decoder.embed(table.last_tokens[rows]),
            positions,
            all_rows[:-1],
            self._caches,
            metadata,
        )
        return decoder.logits(hidden, out=self._logits[: len(rows)])
