"""What a request's options do to its logits before a token is chosen from them."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from vlmflow_engine.runner.grammar import mask_rows
from vlmflow_engine.sequence import Sequence

# A sequence and the row of the step's logits that is its own.
Rows = list[tuple[int, Sequence]]


def is_edited(sequence: Sequence) -> bool:
    """Whether any option changes the sequence's next logits."""
    config = sequence.request.generation
    return bool(
        sequence.matcher is not None
        or config.logits_processors
        or config.repetition_penalty != 1
        or sequence.banned_token_ids
        or sequence.banned_after
        or sequence.must_go_on
    )


def edit_logits(logits: Tensor, rows: Rows) -> dict[int, str]:
    """Apply grammars, processors, penalties and bans, in place and in this order.

    logits  [num_sequences, vocab_size] float32
    Returns what went wrong in code of a request's own, by row.
    """
    errors = mask_rows(
        logits, {row: sequence.matcher for row, sequence in rows if sequence.matcher is not None}
    )
    for row, sequence in rows:
        if row not in errors and (error := _run_processors(logits[row], sequence)):
            errors[row] = error
    _penalise(logits, rows)
    _forbid(logits, ((row, sequence.banned_token_ids) for row, sequence in rows))
    _forbid(logits, ((row, sequence.banned_next_ids()) for row, sequence in rows))
    _forbid_stop(logits, [item for item in rows if item[1].must_go_on])
    return errors


def _run_processors(row: Tensor, sequence: Sequence) -> str | None:
    """Let the user's processors change a row; return what went wrong.

    Whatever is raised there, only this request is at fault.
    """
    processors = sequence.request.generation.logits_processors
    if not processors:
        return None
    generated = torch.tensor(sequence.output_token_ids, dtype=torch.int64, device=row.device)
    for index, processor in enumerate(processors):
        try:
            result = processor(generated, row)
            if not isinstance(result, Tensor) or result.shape != row.shape:
                shown = list(result.shape) if isinstance(result, Tensor) else result
                return (
                    f"logits_processors[{index}] must return logits of shape {list(row.shape)}, "
                    f"got {shown!r}"
                )
            row.copy_(result)
        except Exception as error:
            return f"logits_processors[{index}] raised {type(error).__name__}: {error}"
    return None


def _penalise(logits: Tensor, rows: Rows) -> None:
    """Make tokens that were generated before less likely; with a penalty below 1, more."""
    penalised: list[int] = []
    penalties: list[float] = []
    counts: list[int] = []
    ids: list[int] = []
    for row, sequence in rows:
        penalty = sequence.request.generation.repetition_penalty
        if penalty != 1:
            seen = set(sequence.output_token_ids)
            penalised.append(row)
            penalties.append(penalty)
            counts.append(len(seen))
            ids += seen
    if ids:

        def spread(values: list[int] | list[float]) -> Tensor:
            """What holds for a row, once for each of its ids."""
            return torch.tensor(values).repeat_interleave(torch.tensor(counts)).to(logits.device)

        index = (spread(penalised), torch.tensor(ids, device=logits.device))
        factors = spread(penalties)
        values = logits[index]
        logits[index] = torch.where(values < 0, values * factors, values / factors)


def _forbid(logits: Tensor, banned: Iterable[tuple[int, tuple[int, ...]]]) -> None:
    """Take tokens out of rows. Most requests of a job ban the same, and go in one operation."""
    rows_by_ids: dict[tuple[int, ...], list[int]] = {}
    for row, ids in banned:
        if ids:
            rows_by_ids.setdefault(ids, []).append(row)
    for ids, rows in rows_by_ids.items():
        row_index = torch.tensor(rows, device=logits.device)[:, None]
        column_index = torch.tensor(_known(ids, logits), dtype=torch.int64, device=logits.device)
        logits[row_index, column_index] = -torch.inf


def _forbid_stop(logits: Tensor, rows: Rows) -> None:
    """Let nobody stop who must go on, unless stopping is all that is left, as by a grammar."""
    pairs = [
        (row, token_id)
        for row, sequence in rows
        for token_id in _known(sequence.stop_token_ids, logits)
    ]
    if pairs:
        index = tuple(torch.tensor(pairs, device=logits.device).T)
        values = logits[index]
        logits[index] = -torch.inf
        is_empty = logits.amax(dim=-1) == -torch.inf
        logits[index] = torch.where(is_empty[index[0]], values, -torch.inf)


def _known(ids: Collection[int], logits: Tensor) -> list[int]:
    """Ids that have a logit: a tokenizer may know more tokens than the model."""
    return [token_id for token_id in ids if 0 <= token_id < logits.shape[-1]]
