"""Small tokenizers, and models that answer at random, for the tests of grammars."""

from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from vlmflow_engine.runner.grammar import GrammarCompiler, GrammarMatcher, mask_rows

VOCAB_SIZE = 400  # of the logits; the tokenizers have fewer tokens
EOS = 1
SPECIAL = ("<pad>", "</s>", "<image>", "<|turn|>")
CORPUS = [
    'The {"name": "house", "count": 12, "tags": ["red", "green"], "ok": true, "note": null}',
    "größe Öl naïve café 日本語 текст ✓ 😀 " * 3,
    "pad image turn of the answer: yes, no, 0.25, -17, 2024-03-01",
]


@cache
def byte_level() -> str:
    """A byte-level BPE, as of Qwen or Llama 3: characters may be split over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def byte_fallback() -> str:
    """A BPE as of Llama 2: the decoder takes the first blank off."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(33, 127)] + ["▁a", "▁{", "▁the", "ab", "é"]
    tokenizer = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer.to_str()


def make_compiler(
    tokenizer: str | None = None, *, vocab_size: int = VOCAB_SIZE, eos: tuple[int, ...] = (EOS,)
) -> GrammarCompiler:
    return GrammarCompiler(tokenizer or byte_level(), vocab_size=vocab_size, eos_token_ids=eos)


def as_schema(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def as_regex(regex: str) -> dict[str, Any]:
    return {"type": "regex_schema", "regex_schema": regex}


def masked(
    matcher: GrammarMatcher, logits: Tensor | None = None, *, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    row = torch.zeros(vocab_size) if logits is None else logits.clone()
    mask_rows(row[None], {0: matcher})
    return row


def allowed(matcher: GrammarMatcher, *, vocab_size: int = VOCAB_SIZE) -> set[int]:
    return set(masked(matcher, vocab_size=vocab_size).isfinite().nonzero().flatten().tolist())


def write(
    matcher: GrammarMatcher, seed: int = 0, *, bias: Tensor | None = None, limit: int = 4000
) -> list[int]:
    """Let a random model answer; return the answer's tokens without the one that ends it."""
    generator = torch.Generator().manual_seed(seed)
    written: list[int] = []
    while not matcher.is_finished:
        assert len(written) < limit, "the answer does not end"
        logits = torch.randn(VOCAB_SIZE, generator=generator)
        token_id = int(masked(matcher, logits if bias is None else logits + bias).argmax())
        matcher.accept(token_id)
        if token_id != EOS:
            written.append(token_id)
    assert matcher.error is None
    assert matcher.can_end
    return written


def decode(token_ids: list[int], tokenizer: str | None = None) -> str:
    text: str = Tokenizer.from_str(tokenizer or byte_level()).decode(token_ids)
    return text
