"""What enters the engine (`Request`) and what leaves it (`Response`)."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One image at its place in the prompt, ready for the vision tower but not yet normalised."""

    content_hash: bytes  # of the source bytes and of all that decides its embeddings
    # uint8 [height, width, 3] or [tiles, height, width, 3]; of another dtype, as the model wants.
    pixels: "NDArray[Any]"
    offset: int  # position of its first placeholder token
    num_tokens: int  # from the first placeholder token to the last
    layout: tuple[int, ...] = ()  # what the model has to know beside the pixels, see its processor
    # The tokens with an embedding row, counted from `offset`; None: all, no other lies between.
    places: "NDArray[np.int32] | None" = None
    arrays: "Mapping[str, NDArray[Any]]" = field(default_factory=dict)  # beside pixels, by name

    @property
    def end(self) -> int:
        """The position behind its last placeholder token."""
        return self.offset + self.num_tokens

    @property
    def num_rows(self) -> int:
        """Its embedding rows."""
        return self.num_tokens if self.places is None else len(self.places)

    def runs(self, start: int, end: int) -> "list[tuple[int, int, int]]":
        """The placeholders among positions [start, end), in runs without a gap.

        Each as (position, first embedding row, behind its last one).
        """
        start, end = max(start, self.offset) - self.offset, min(end, self.end) - self.offset
        if self.places is None:
            return [(self.offset + start, start, end)]
        first, last = (bisect_left(self.places, bound) for bound in (start, end))
        runs: list[tuple[int, int, int]] = []
        for row in range(first, last):
            position = self.offset + int(self.places[row])
            if runs and position - runs[-1][0] == row - runs[-1][1]:
                runs[-1] = (*runs[-1][:2], row + 1)
            else:
                runs.append((position, row, row + 1))
        return runs


@dataclass(frozen=True, slots=True)
class Request:
    """A tokenised prompt, ready to be scheduled."""

    request_id: int
    prompt_token_ids: tuple[int, ...]  # placeholders expanded
    images: tuple[ImageInput, ...]  # by offset, spans disjoint
    generation: GenerationConfig
    seed: int  # with a position it decides the draw of a sampled token
    adapter_name: str | None = None  # a LoRA adapter of the engine's config
    grammar: Any = None  # compiled response_format, see runner.grammar
    # Token ids that may not follow one another: what bad_words spells.
    banned_sequences: tuple[tuple[int, ...], ...] = ()


@dataclass(slots=True)
class Response:
    """One answer, or a chunk of one. Field names and defaults are LMDeploy's.

    A prompt that failed is a Response too, with finish_reason "error", an error_code and an
    error_message; its text is empty, but for an answer that was no valid `response_format`.
    """

    text: str  # without the stop word; of a chunk what is new
    generate_token_len: int  # generated tokens, the stop token not counted
    input_token_len: int  # prompt tokens, expanded placeholders included
    # "stop", "length" (max_new_tokens or the context), "error", "abort"; None: more chunks come.
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)  # generated, the stop token left out
    # For each token a dict of id to value: itself, then the likeliest, as `logprobs` asks.
    logprobs: list[dict[int, float]] | None = None
    logits: Any = None  # tensor [tokens, vocab_size] float32 on the CPU, as output_logits asks
    # Tensor [tokens, hidden_size] float32 on the CPU, as output_last_hidden_state asks.
    last_hidden_state: Any = None
    index: int = 0  # position in the batch
    choice: int = 0  # which of the n answers to the prompt
    routed_experts: Any = None  # LMDeploy's; always None
    ppl: float | None = None  # mean cross-entropy of the prompt, natural logarithm
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    error_code: str | None = None  # the `code` of one of the errors; None: there is an answer
    error_message: str | None = None  # a sentence: what was wrong, and what to do

    def __str__(self) -> str:
        told = ("finish_reason", "index", "choice", "input_token_len", "generate_token_len")
        lines = [f"{name}={getattr(self, name)}" for name in (*told, "cached_tokens")]
        if self.error_code is not None:
            lines += [f"error_code={self.error_code}", f"error_message={self.error_message}"]
        return "\n".join([*lines, f"text:\n{self.text}"])

    def extend(self, chunk: "Response") -> "Response":
        """Return this answer so far and the next chunk of it as one; logits are the chunk's."""
        return replace(
            chunk,
            text=self.text + chunk.text,
            token_ids=self.token_ids + chunk.token_ids,
            logprobs=(self.logprobs or []) + (chunk.logprobs or []) or None,
        )
