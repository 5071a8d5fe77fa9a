"""The two libraries behind one face, for benchmarks/grammar.py."""

from typing import Any, Protocol

import torch

from benchmarks.grammar_cases import Case
from vlmflow_engine.runner.response_format import write_grammar

BATCH_SIZE = 16


class Library(Protocol):
    """Made when it is imported."""

    def prepare(self, tokenizer_json: str, size: int, eos: int) -> None: ...
    def compile(self, case: Case) -> Any: ...
    def new_matcher(self, compiled: Any) -> Any: ...
    def fill(self, matcher: Any, row: int) -> None: ...
    def accept(self, matcher: Any, token_id: int) -> None: ...


class Llguidance:
    """The grammars are those that runner/grammar.py uses."""

    def __init__(self) -> None:
        import llguidance

        self._library: Any = llguidance

    def prepare(self, tokenizer_json: str, size: int, eos: int) -> None:
        self._tokenizer = self._library.LLTokenizer(tokenizer_json, n_vocab=size, eos_token=[eos])
        self._masks = torch.zeros(BATCH_SIZE, (size + 31) // 32, dtype=torch.int32)

    def compile(self, case: Case) -> Any:
        grammar = self._library.LLMatcher.grammar_from_lark(write_grammar(case.response_format))
        return self._library.LLMatcher(self._tokenizer, grammar, log_level=0)

    def new_matcher(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, matcher: Any, row: int) -> None:
        mask = self._masks[row]
        matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.nbytes)

    def accept(self, matcher: Any, token_id: int) -> None:
        if not matcher.consume_token(token_id):
            raise SystemExit(f"llguidance refused token {token_id}: {matcher.get_error()}")


class Xgrammar:
    """At most 16 blanks in a row, as ours."""

    def __init__(self) -> None:
        import xgrammar

        self._library: Any = xgrammar

    def prepare(self, tokenizer_json: str, size: int, eos: int) -> None:
        from tokenizers import Tokenizer

        vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab()
        info = self._library.TokenizerInfo(
            sorted(vocabulary, key=lambda token: int(vocabulary[token])),
            self._library.VocabType.BYTE_LEVEL,
            vocab_size=size,
            stop_token_ids=[eos],
        )
        self._compiler = self._library.GrammarCompiler(info, cache_enabled=False)
        self._masks = self._library.allocate_token_bitmask(BATCH_SIZE, size)

    def compile(self, case: Case) -> Any:
        if case.regex is not None:
            return self._compiler.compile_regex(case.regex)
        return self._compiler.compile_json_schema(
            case.schema, any_whitespace=True, max_whitespace_cnt=16, strict_mode=False
        )

    def new_matcher(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def fill(self, matcher: Any, row: int) -> None:
        matcher.fill_next_token_bitmask(self._masks, row)

    def accept(self, matcher: Any, token_id: int) -> None:
        if not matcher.accept_token(token_id):
            raise SystemExit(f"xgrammar refused token {token_id}")


LIBRARIES: dict[str, type[Library]] = {"llguidance": Llguidance, "xgrammar": Xgrammar}
