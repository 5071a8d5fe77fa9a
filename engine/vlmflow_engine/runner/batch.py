"""A step's plan as tensors."""

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
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.plan import StepPlan
from vlmflow_engine.runner.positions import positions_of
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
    sampled: list[int]  # of those, the ones whose next token is drawn
    outputs: list[OutputRows]
    images: list[EmbeddingRows]
    attention: AttentionMetadata
    adapters: list[AdapterRows] | None  # None: no row has one


def build_model_input(
    plan: StepPlan,
    *,
    block_size: int,
    device: torch.device,
    num_position_axes: int = 1,
    usual_context: int | None = None,
) -> ModelInput:
    """Lay out a plan's tokens in the order of its sequences.

    num_position_axes, usual_context  of the decoder
    """
    token_ids: list[int] = []
    positions: list[NDArray[np.int64]] = []
    hidden_rows: list[int] = []
    sampled: list[int] = []
    outputs: list[OutputRows] = []
    images: list[EmbeddingRows] = []
    spans: list[SequenceSpan] = []
    rows_of_adapter: dict[str, list[int]] = {}
    for item in plan.scheduled:
        row, sequence = len(token_ids), item.sequence
        token_ids += sequence.token_ids[item.start : item.end]
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
        spans.append(SequenceSpan(item.end - item.start, item.end, sequence.block_ids))
        name = sequence.request.adapter_name
        if name is not None:
            rows_of_adapter.setdefault(name, []).extend(range(row, len(token_ids)))
    return ModelInput(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate(positions, axis=-1)).to(device),
        hidden_rows=torch.tensor(hidden_rows, dtype=torch.int64, device=device),
        sampled=sampled,
        outputs=outputs,
        images=images,
        attention=plan_attention(spans, block_size=block_size, device=device),
        adapters=_adapter_rows(rows_of_adapter, len(token_ids), device),
    )


def _adapter_rows(
    rows_of_adapter: dict[str, list[int]], num_tokens: int, device: torch.device
) -> list[AdapterRows] | None:
    if not rows_of_adapter:
        return None
    return [
        AdapterRows(
            name,
            torch.tensor(rows, dtype=torch.int64, device=device)
            if len(rows) < num_tokens
            else None,
        )
        for name, rows in rows_of_adapter.items()
    ]
