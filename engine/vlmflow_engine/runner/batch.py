"""A step's plan as tensors."""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.kernels.paged_attention import (
    AttentionMetadata,
    SequenceSpan,
    plan_attention,
)
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.plan import ScheduledSequence, StepPlan
from vlmflow_engine.runner.positions import positions_of
from vlmflow_engine.runner.sequence_table import SequenceTable
from vlmflow_engine.runner.transfer import upload
from vlmflow_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """Rows [start, end) of an image's embeddings go to the step's rows from `row` on."""

    row: int
    content_hash: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Hidden rows [row, row + num_rows) are those of a sequence from position `start` on."""

    sequence: Sequence
    start: int
    row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the decoder computes in one step, all sequences one after the other."""

    token_ids: Tensor  # [num_tokens] int64; placeholders hold 0
    positions: Tensor  # int64, see layers.rotary
    hidden_rows: Tensor  # [num_hidden] int64, rows whose last hidden state is wanted
    sampled: Tensor | None  # [num_sampled] int64, of those the ones whose next token is drawn
    sequences: list[Sequence]  # whose tokens they are; `sampled` None: each has the one row
    outputs: list[OutputRows]
    images: list[EmbeddingRows]
    attention: AttentionMetadata | PagedMetadata
    adapters: list[AdapterRows] | None  # None: no row has one
    table_rows: Tensor  # [num_sampled] int64, of the sequence table
    num_tokens: Tensor  # [num_sampled] int64, of a sequence once its token is drawn


def build_model_input(
    plan: StepPlan,
    table: SequenceTable,
    *,
    block_size: int,
    device: torch.device,
    num_position_axes: int = 1,
    usual_context: int | None = None,
    is_paged: bool = False,
    is_invariant: bool = False,
) -> ModelInput:
    """Lay out a plan's tokens, those of one sequence behind those of another.

    table                             knows the plan's sequences
    num_position_axes, usual_context  of the decoder
    is_paged                          lay it out for the Triton kernels: sequences with one new
                                      token first
    """
    items = plan.scheduled
    if is_paged:
        items = sorted(items, key=lambda item: _has_chunk(item, is_invariant))
    token_ids: list[int] = []
    positions: list[NDArray[np.int64]] = []
    hidden_rows: list[int] = []
    sampled: list[int] = []
    sequences: list[Sequence] = []
    outputs: list[OutputRows] = []
    images: list[EmbeddingRows] = []
    drawn: list[tuple[int, int]] = []  # rows of the step, rows of the table
    rows_of_adapter: dict[str, list[int]] = {}
    for item in items:
        row, sequence = len(token_ids), item.sequence
        token_ids += sequence.token_ids[item.start : item.end]
        if item.end > sequence.num_tokens:  # its last token has not come home
            drawn.append((len(token_ids), table.row_of(sequence)))
            token_ids.append(0)
        positions.append(
            positions_of(sequence, item.start, item.end, num_position_axes, usual_context)
        )
        for image in sequence.images_within(item.start, item.end):
            for position, start, end in image.runs(item.start, item.end):
                first = row + position - item.start
                # A placeholder's id need not be in the vocabulary.
                token_ids[first : first + end - start] = [0] * (end - start)
                images.append(EmbeddingRows(first, image.content_hash, start, end))
        generation = sequence.request.generation
        num_hidden = item.end - item.start if generation.wants_prompt_rows else item.is_sampled
        if generation.wants_outputs and num_hidden:
            start = item.end - num_hidden
            outputs.append(OutputRows(sequence, start, len(hidden_rows), num_hidden))
        hidden_rows += range(len(token_ids) - num_hidden, len(token_ids))
        if item.is_sampled:
            sampled.append(len(hidden_rows) - 1)
            sequences.append(sequence)
        name = sequence.request.adapter_name
        if name is not None:
            rows_of_adapter.setdefault(name, []).extend(range(row, len(token_ids)))
    arrays: list[NDArray[np.generic]] = [
        np.array(token_ids, dtype=np.int64),
        np.concatenate(positions, axis=-1),
        np.array(hidden_rows, dtype=np.int64),
        np.array(sampled, dtype=np.int64),
        np.array([table.row_of(sequence) for sequence in sequences], dtype=np.int64),
        np.array([sequence.num_drawn_tokens + 1 for sequence in sequences], dtype=np.int64),
        np.array(drawn, dtype=np.int64).reshape(-1, 2),
        *(_paged_arrays(items, table, block_size) if is_paged else ()),
    ]
    ids, places, hidden, chosen, table_rows, num_tokens, pending, *paged = upload(arrays, device)
    if drawn:
        ids[pending[:, 0]] = table.last_tokens[pending[:, 1]]
    attention: AttentionMetadata | PagedMetadata
    if is_paged:
        attention = _paged_metadata(items, paged, table, is_invariant)
    else:
        attention = plan_attention(
            [SequenceSpan(i.end - i.start, i.end, i.sequence.block_ids) for i in items],
            block_size=block_size,
            device=device,
        )
    return ModelInput(
        token_ids=ids,
        positions=places,
        hidden_rows=hidden,
        sampled=chosen if len(sampled) < len(hidden_rows) else None,
        sequences=sequences,
        outputs=outputs,
        images=images,
        attention=attention,
        adapters=_adapter_rows(rows_of_adapter, len(token_ids), device),
        table_rows=table_rows,
        num_tokens=num_tokens,
    )


def _has_chunk(item: ScheduledSequence, is_invariant: bool) -> bool:
    # Where another cut of a prompt may change no bit, its last token is computed like the others.
    return item.end - item.start > 1 or (is_invariant and not item.is_decode)


def _paged_arrays(
    items: AbstractSequence[ScheduledSequence], table: SequenceTable, block_size: int
) -> list[NDArray[np.generic]]:
    """Slots, table rows, context lengths and first rows, as `PagedMetadata` has them."""
    slots: list[NDArray[np.int64]] = []
    decoded: list[int] = []  # slots of the single tokens, which come first
    for item in items:
        block_ids, end = item.sequence.block_ids, item.end
        first = item.start // block_size
        if end - item.start == 1 and not slots:  # of hundreds, each an array would take 1 ms a step
            decoded.append(block_ids[first] * block_size + item.start % block_size)
            continue
        places = np.arange(item.start, end, dtype=np.int64)
        blocks = np.array(block_ids[first : -(-end // block_size)], np.int64)
        slots.append(blocks[places // block_size - first] * block_size + places % block_size)
    starts = np.cumsum([0, *(item.end - item.start for item in items)])
    return [
        np.concatenate([np.array(decoded, dtype=np.int64), *slots]),
        np.array([table.row_of(item.sequence) for item in items], dtype=np.int32),
        np.array([item.end for item in items], dtype=np.int32),
        starts.astype(np.int32),
    ]


def _paged_metadata(
    items: AbstractSequence[ScheduledSequence],
    tensors: list[Tensor],
    table: SequenceTable,
    is_invariant: bool,
) -> PagedMetadata:
    slots, table_rows, context_lens, query_starts = tensors
    chunk_lens = [item.end - item.start for item in items if _has_chunk(item, is_invariant)]
    return PagedMetadata(
        slot_mapping=slots,
        block_tables=table.block_tables,
        table_rows=table_rows,
        context_lens=context_lens,
        query_starts=query_starts,
        num_decodes=len(items) - len(chunk_lens),
        max_chunk_len=max(chunk_lens, default=0),
        is_invariant=is_invariant,
    )


def _adapter_rows(
    rows_of_adapter: dict[str, list[int]], num_tokens: int, device: torch.device
) -> list[AdapterRows] | None:
    if not rows_of_adapter:
        return None
    return [
        AdapterRows(
            name,
            upload([np.array(rows, dtype=np.int64)], device)[0] if len(rows) < num_tokens else None,
        )
        for name, rows in rows_of_adapter.items()
    ]
