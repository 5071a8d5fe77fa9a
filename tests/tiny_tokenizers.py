"""Small tokenizers in the files of checkpoints that bring no tokenizer.json."""

import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

# What InternVL2 adds to InternLM2: the first six replace pieces that are there for it.
INTERNLM2_TOKENS = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
_NUM_REPLACED = 6
# What Qwen2 has, and what InternVL2 adds to it.
QWEN2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *INTERNLM2_TOKENS[6:])

_WORDS = (
    "the a of and to in is it on at by with for an image picture shows what this that which red "
    "green blue yellow circle square star triangle left right above below between one two three "
    "four count colour shape where how many describe answer question user assistant system please "
    "detail helpful polite curious human artificial intelligence chat gives don't it's they're "
    "Straße naïve café мир привет 你好 世界 图像 描述 请 图片 书生 こんにちは 한국어 🙂 e\u0301"
)


@cache
def corpus() -> tuple[str, ...]:
    """A few thousand sentences, always the same."""
    draw = random.Random(0)
    words_known = _WORDS.split()
    sentences = []
    for _ in range(3000):
        words = draw.choices(words_known, k=draw.randint(3, 12))
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words)), str(draw.randrange(10_000)))
        joined = draw.choice((" ", " ", " ", ", ", "  ")).join(words)
        sentences.append(joined + draw.choice(".?!:;"))
    return tuple(sentences)


@cache
def train_sentencepiece(vocab_size: int = 640, **options: Any) -> bytes:
    """Train a model with Llama's settings; `options` are SentencePieceTrainer's. Returns the file.

    <unk>, <s> and </s> are 0, 1, 2, and the 256 bytes follow.
    """
    written = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 0.995,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        vocab_size=vocab_size,
        **settings | options,
    )
    return written.getvalue()


def write_llama_sentencepiece(
    folder: Path, *, vocab_size: int = 640, config: Mapping[str, Any] | None = None
) -> int:
    """Write what liuhaotian's LLaVA has: tokenizer.model and two small configs.

    config  laid over tokenizer_config.json
    Returns the number of tokens; <image> is none of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(vocab_size))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 4096,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            **{name: _added(token) for name, token in tokens.items()},
        }
        | dict(config or {}),
    )
    _write(folder / "special_tokens_map.json", tokens | {"pad_token": "<unk>"})
    return vocab_size


def write_internlm2(
    folder: Path,
    *,
    vocab_size: int = 640,
    extra_tokens: Sequence[str] = INTERNLM2_TOKENS,
    with_decoder: bool = True,
) -> dict[str, int]:
    """Write what InternVL2-8B has: tokenizer.model, configs, and added_tokens.json.

    The first six extra tokens stand in the place of the model's last pieces, as [UNUSED_TOKEN_1].

    vocab_size    pieces of the model, unused ones included
    with_decoder  repeat the tokens in tokenizer_config.json, as newer checkpoints do
    Returns the ids of the extra tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unused = [f"[UNUSED_TOKEN_{index}]" for index in range(_NUM_REPLACED)]
    model = add_pieces(train_sentencepiece(vocab_size - _NUM_REPLACED), unused, kind=4)
    (folder / "tokenizer.model").write_bytes(model)
    first = vocab_size - _NUM_REPLACED
    ids = {token: first + index for index, token in enumerate(extra_tokens)}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    named = tokens | {"additional_special_tokens": list(extra_tokens)}
    config = named | {
        "add_bos_token": True,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "InternLM2Tokenizer",
    }
    if with_decoder:
        entries = {"<unk>": 0, "<s>": 1, "</s>": 2} | ids
        config["added_tokens_decoder"] = {
            str(token_id): _added(token) | {"special": True} for token, token_id in entries.items()
        }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", named)
    _write(folder / "added_tokens.json", ids)
    return ids


def write_qwen2_bpe(
    folder: Path, *, vocab_size: int = 512, extra_tokens: Sequence[str] = QWEN2_TOKENS
) -> dict[str, int]:
    """Write what InternVL2-1B has: vocab.json, merges.txt, configs, added_tokens.json.

    vocab_size  entries of vocab.json; the extra tokens follow
    Returns the ids of the extra tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(_train_byte_level(vocab_size))["model"]
    _write(folder / "vocab.json", content["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = {token: vocab_size + index for index, token in enumerate(extra_tokens)}
    tokens = {"eos_token": extra_tokens[2], "pad_token": extra_tokens[0]}
    named = tokens | {"additional_special_tokens": list(extra_tokens[1:])}
    _write(
        folder / "tokenizer_config.json",
        named
        | {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token_id): _added(token) | {"special": True} for token, token_id in ids.items()
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _write(folder / "special_tokens_map.json", named)
    _write(folder / "added_tokens.json", ids)
    return ids


@cache
def _train_byte_level(vocab_size: int) -> str:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer.to_str()


def add_pieces(model: bytes, texts: Iterable[str], *, kind: int) -> bytes:
    """Append pieces to a trained model; their score is 0.

    kind  the file's number: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused
    """
    for text in texts:
        name = text.encode()
        # Fields 1, 2 and 3 of a piece, which is field 1 of the file's message.
        piece = b"\n" + bytes([len(name)]) + name + b"\x15" + bytes(4) + b"\x18" + bytes([kind])
        model += b"\n" + bytes([len(piece)]) + piece
    return model


def _added(token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **flags}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
