"""From logits to token ids, with all that a request asks of them.

The order of the options is LMDeploy's: grammar, logits_processors, repetition_penalty,
temperature, forbidden tokens, min_new_tokens, top_k, top_p, min_p. A greedy request takes the
likeliest token after the same edits; LMDeploy leaves its repetition_penalty out. What forbids
tokens is applied before the temperature, which changes nothing.
"""

from collections.abc import Sequence as AbstractSequence

from torch import Tensor

from vlmflow_engine.plan import SampledToken
from vlmflow_engine.runner.draw import choose
from vlmflow_engine.runner.logits import edit_logits, is_edited
from vlmflow_engine.runner.logprobs import gather_logprobs
from vlmflow_engine.sequence import Sequence

NOTHING_LEFT = (
    "no token can be chosen: the grammar, logits_processors and forbidden tokens leave none, "
    "or a logit is NaN"
)


def sample(
    logits: Tensor, sequences: AbstractSequence[Sequence], *, logprobs_mode: str | None = None
) -> list[SampledToken]:
    """Choose the next token of each sequence, and let its grammar accept it; see `Draw`."""
    return Draw(logits, sequences, logprobs_mode=logprobs_mode).take()


class Draw:
    """The next token of each sequence of a step: drawn on the device, taken home later.

    Where no token can be chosen the sequence's `SampledToken` has an error, its neighbours a token.
    """

    def __init__(
        self,
        logits: Tensor,
        sequences: AbstractSequence[Sequence],
        *,
        logprobs_mode: str | None = None,
    ) -> None:
        """Draw.

        logits         [num_sequences, vocab_size] float32; left as they are
        logprobs_mode  "raw_logprobs", the same as None, or "raw_logits"
        """
        wants_logprobs = any(s.request.generation.logprobs is not None for s in sequences)
        # A copy: where a CUDA graph has written them, the next step writes its own.
        self._logits = logits.clone() if wants_logprobs else None
        self._sequences = sequences
        self._logprobs_mode = logprobs_mode
        self._errors: dict[int, str] = {}
        edited = [row for row, sequence in enumerate(sequences) if is_edited(sequence)]
        # Whether the host looked at a sequence's tokens to draw the next: it must know that one
        # before it draws another.
        self.is_known = bool(edited)
        if not edited:
            self.chosen = choose(logits, sequences)  # [num_sequences] int64, -1: none
        else:
            scores = logits.clone()
            self._errors = edit_logits(scores, [(row, sequences[row]) for row in edited])
            self.chosen = choose(scores, sequences)

    def take(self) -> list[SampledToken]:
        """Bring the tokens home, and let grammars accept theirs."""
        # The step's only wait for the device, but for what a user's code waits for.
        token_ids: list[int] = self.chosen.tolist()
        logprobs: dict[int, dict[int, float]] = {}
        if self._logits is not None:
            logprobs = gather_logprobs(
                self._logits, token_ids, self._sequences, mode=self._logprobs_mode
            )
        return [
            _finish(sequence, token_id, logprobs.get(row), self._errors.get(row))
            for row, (sequence, token_id) in enumerate(zip(self._sequences, token_ids, strict=True))
        ]


def _finish(
    sequence: Sequence, token_id: int, logprobs: dict[int, float] | None, error: str | None
) -> SampledToken:
    if error is None and token_id < 0:
        error = NOTHING_LEFT
    if error is None and sequence.matcher is not None:
        try:
            sequence.matcher.accept(token_id)
        except Exception as refusal:  # say, of a token that a logits_processor brought back
            error = f"the grammar refuses token {token_id}: {refusal}"
    return SampledToken(token_id, logprobs) if error is None else SampledToken(-1, error=error)
