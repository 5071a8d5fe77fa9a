"""Answers of a given form: which tokens may come next, by llguidance.

llguidance was kept over xgrammar for compile times of milliseconds, refusals instead of silence
about what it cannot enforce, and no need of transformers and triton (benchmarks/grammar.py).

A token that ends the answer is allowed exactly when the answer is complete; special tokens never.
Work is bounded by the library's counters, not by a clock: a slow machine refuses nothing more.
"""

import re
import threading
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.errors import InvalidRequestError, UnsupportedFeatureError
from vlmflow_engine.runner.response_format import write_grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

NUM_CACHED = 64  # compiled grammars
_MAX_LEXER_STATES = 50_000  # of 1 to 2 KB each, by grammar
_POSITION = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")


class GrammarCompiler:
    """Compiles response formats for one tokenizer. Safe to use from several threads."""

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        """
        tokenizer_json  content of a tokenizer.json; prepared when the first grammar is compiled
        vocab_size      width of the model's logits, more or fewer than the tokenizer has tokens
        eos_token_ids   the tokens that end an answer; with none, is_finished alone tells its end
        """
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._lock = threading.Lock()
        self._compiled = lru_cache(maxsize=NUM_CACHED)(self._compile)

    def compile(self, response_format: dict[str, Any]) -> "Grammar":
        """Return its grammar, from the cache if it was asked for lately.

        Raises InvalidRequestError if it is invalid, too large, or no text satisfies it, and
        UnsupportedFeatureError if the tokenizer's tokens are no bytes.
        """
        with self._lock:
            compiled = self._compiled(
                write_grammar(response_format, strips_blank=self._vocabulary.strips_blank)
            )
        if isinstance(compiled, str):
            raise InvalidRequestError(f"response_format: {compiled}")
        return compiled

    def _compile(self, source: str) -> "Grammar | str":
        """The grammar, or what is wrong with it: a job asks for a wrong one at every record."""
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(
            self._vocabulary.tokenizer,
            LLMatcher.grammar_from_lark(source),
            log_level=0,
            limits=LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False),
        )
        if matcher.is_error():
            return _sentence(matcher.get_error())
        grammar = Grammar(matcher, self._vocabulary)
        first = grammar.new_matcher()
        first.allowed()  # finds what no text satisfies
        return first.error or grammar

    @cached_property
    def _vocabulary(self) -> "_Vocabulary":
        return _Vocabulary(self._tokenizer_json, self._vocab_size, self._eos_token_ids)


class Grammar:
    """A compiled response_format; shared by all requests that ask for it."""

    def __init__(self, matcher: "LLMatcher", vocabulary: "_Vocabulary") -> None:
        self._matcher = matcher  # never moved; its copies share what they learn of the vocabulary
        self._vocabulary = vocabulary

    def new_matcher(self) -> "GrammarMatcher":
        return GrammarMatcher(self._matcher.deep_copy(), self._vocabulary)


class GrammarMatcher:
    """How far one answer has come. Its state depends on the accepted tokens alone.

    error  why an incomplete answer cannot go on, or None: a token was accepted that the mask
           forbids, the vocabulary cannot spell what has to follow, or the step needs more work
           than is allowed. Then only the end is left, and can_end is false.
    """

    def __init__(self, matcher: "LLMatcher", vocabulary: "_Vocabulary") -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._is_ended = False
        self.error: str | None = None

    @property
    def can_end(self) -> bool:
        """Whether the answer so far is complete and valid."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end may follow, or the end was accepted."""
        return self._is_ended or self.error is not None or self._matcher.is_stopped()

    def accept(self, token_id: int) -> None:
        """Go on by a token of the answer."""
        if token_id in self._vocabulary.eos_token_ids:
            self._is_ended = True
        elif not self.is_finished and not self._matcher.consume_token(token_id):
            self.error = f"token {token_id} does not continue the answer"

    def allowed(self) -> NDArray[np.uint8]:
        """Return which tokens may follow; sets error where none may.

        A bit a token, the first one's the lowest: [ceil(vocab_size / 8)].
        """
        vocabulary = self._vocabulary
        allowed = np.zeros_like(vocabulary.texts)
        if not self.is_finished:
            bitmask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed = bitmask[: len(allowed)] & vocabulary.texts
            if not allowed.any() and not self.can_end:
                self.error = self._dead_end()
        if self.is_finished or self.can_end:
            allowed |= vocabulary.eos
        return allowed

    def _dead_end(self) -> str:
        reason = self._matcher.get_error() if self._matcher.is_error() else ""
        if not reason or reason.startswith("NoExtension"):
            return "no text that this vocabulary can spell satisfies it"
        return _sentence(reason)


def mask_rows(logits: Tensor, matchers: Mapping[int, GrammarMatcher]) -> dict[int, str]:
    """Write -inf over the logits of the tokens that may not follow, in place.

    logits    [num_rows, vocab_size], of a float type, on any device
    matchers  by row; other rows are left alone
    Returns what went wrong, by row. Whatever a matcher raises, the rows of the others are masked.
    """
    allowed: dict[int, NDArray[np.uint8]] = {}
    errors: dict[int, str] = {}
    for row, matcher in matchers.items():
        try:
            allowed[row] = matcher.allowed()
        except Exception as error:
            errors[row] = f"the grammar failed: {type(error).__name__}: {error}"
    if not allowed:
        return errors
    bits = ~np.stack(list(allowed.values()))
    # All at once: a third of the time that it takes row by row, and one copy to a device.
    unpacked = np.unpackbits(bits, axis=1, count=logits.shape[-1], bitorder="little")
    forbidden = torch.from_numpy(unpacked.view(np.bool_))
    if logits.is_cuda:
        forbidden = forbidden.pin_memory().to(logits.device, non_blocking=True)
    rows = list(allowed)
    if rows == list(range(len(logits))):  # as in a job, whose records are all of one form
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        index = torch.tensor(rows, device=logits.device)
        logits[index] = logits[index].masked_fill(forbidden, -torch.inf)
    return errors


class _Vocabulary:
    """The tokens as llguidance wants them, and which of them end an answer."""

    def __init__(self, tokenizer_json: str, size: int, eos_token_ids: frozenset[int]) -> None:
        from llguidance import LLTokenizer
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(tokenizer_json)
        ids = frozenset(tokenizer.get_vocab(with_added_tokens=True).values())
        try:
            self.tokenizer = LLTokenizer(
                tokenizer_json,
                n_vocab=max(size, max(ids) + 1),
                eos_token=sorted(eos_token_ids & ids) or None,  # None: it looks for one by name
            )
        except ValueError as error:
            raise UnsupportedFeatureError(
                "response_format needs a tokenizer whose tokens are bytes, byte-level or "
                f"byte-fallback BPE: {_sentence(str(error))}"
            ) from error
        self.size = size
        self.eos_token_ids = eos_token_ids
        self.eos = _bits(eos_token_ids, size)
        # The library would allow more at an end; those are no text, even where they spell some.
        ends = eos_token_ids.union(self.tokenizer.eos_tokens)
        self.texts = _bits(range(size), size) & ~_bits(ends, size)
        self.strips_blank = self._strips_blank(tokenizer, ids)

    def _strips_blank(self, tokenizer: Any, ids: Collection[int]) -> bool:
        """Whether the decoder takes the first blank off, as SentencePiece's does."""
        for token_id in ids:
            spelled = self.tokenizer.decode_bytes([token_id])
            if spelled[:1] == b" " and spelled[1:].isalpha():
                return not tokenizer.decode([token_id]).startswith(" ")
        return False


def _bits(token_ids: Iterable[int], size: int) -> NDArray[np.uint8]:
    """A bit for each of `size` tokens, the first one's the lowest: whether it is one of these."""
    flags = np.zeros(size, dtype=np.uint8)
    flags[[token_id for token_id in token_ids if token_id < size]] = 1
    return np.packbits(flags, bitorder="little")


def _sentence(error: str) -> str:
    """What is wrong, of the library's message: other lines say where in a grammar we wrote."""
    if "coerce_one_of" in error:  # an option that callers do not have
        return "oneOf needs branches that visibly exclude one another; use anyOf"
    if "limits." in error or "too many states" in error:
        return "it takes more work than is allowed; make its patterns and repetitions simpler"
    lines = [line.strip() for line in error.strip().splitlines()] or ["unknown error"]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return named[0] if named else _POSITION.sub("", lines[0])
