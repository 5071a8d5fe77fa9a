"""vocab.json + merges.txt give the ids of transformers' Qwen2 tokenizer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from tests.tiny_tokenizers import QWEN2_TOKENS, corpus, write_qwen2_bpe
from vlmflow_engine.errors import ModelError
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

TEXTS = (
    st.lists(
        st.sampled_from([*"ab 12,.'\n\t\r你好é\U0001f642", " the", "'s", "e\u0301", *QWEN2_TOKENS]),
        max_size=20,
    ).map("".join)
    | st.text(max_size=20)
    | st.sampled_from(corpus()[:200])
)


@cache
def _both(folder: Path) -> tuple[PromptTokenizer, Qwen2Tokenizer]:
    write_qwen2_bpe(folder)
    # It writes no file; else it would be a tokenizer.json that is read.
    theirs = Qwen2Tokenizer.from_pretrained(folder)
    assert not (folder / "tokenizer.json").exists()
    return PromptTokenizer.from_folder(folder), theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen2")


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@example("")
@example("I'LL say it's 2024!\n\n  <img><IMG_CONTEXT></img>  ok \r\n")
@example("\u2126 \ufb01 \u1e9b\u0323")
def test_text_has_the_ids_of_transformers(folder: Path, text: str) -> None:
    ours, theirs = _both(folder)
    assert ours.encode_text(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 523), max_size=12))
def test_answer_reads_as_transformers_decodes_it(
    folder: Path, skip_special_tokens: bool, ids: list[int]
) -> None:
    ours, theirs = _both(folder)
    assert ours.decode(ids, skip_special_tokens=skip_special_tokens) == theirs.decode(
        ids, skip_special_tokens=skip_special_tokens
    )


def test_prompt_begins_without_a_token_of_its_own(folder: Path) -> None:
    assert _both(folder)[0].beginning == []


def test_added_tokens_have_the_ids_of_the_checkpoints_files(tmp_path: Path) -> None:
    ids = write_qwen2_bpe(tmp_path, extra_tokens=("<pad>", "<b>", "<c>", "<img>"))
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    assert {token: tokenizer.token_id(token) for token in ids} == ids
    assert set(tokenizer.special_tokens) == set(ids)


Break = Callable[[Path], object]


def _edit(name: str, old: str, new: str) -> Break:
    def edit(folder: Path) -> None:
        content = (folder / name).read_text(encoding="utf-8")
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1), encoding="utf-8")

    return edit


def _merge(line: str) -> Break:
    return _edit("merges.txt", "#version: 0.2\n", f"#version: 0.2\n{line}\n")


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "vocab.json").write_text("[]"), "vocab.json: not a JSON object"),
        (_edit("vocab.json", '"!": 0', '"!": "0"'), "vocab.json: '!' has the id '0'"),
        (_edit("vocab.json", '"!": 0', '"!": 1'), r"vocab.json: '\"' and '!' have one id, 1"),
        (_merge("!"), r"merges.txt: line 2, '!', is no pair of tokens"),
        (_merge("! !!!"), r"merges.txt: line 2, '! !!!', is no pair of tokens"),
        (lambda folder: (folder / "merges.txt").write_bytes(b"\xff"), "merges.txt: not valid UTF"),
        (_edit("tokenizer_config.json", "Qwen2T", "GPT2T"), "for Qwen2Tokenizer.*'GPT2Tokenizer'"),
        (_edit("added_tokens.json", "512", "3"), "added_tokens.json: .*endoftext.* two ids|512"),
    ],
)
def test_files_that_contradict_themselves_are_the_models_fault(
    tmp_path: Path, break_it: Break, reason: str
) -> None:
    write_qwen2_bpe(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=reason):
        PromptTokenizer.from_folder(tmp_path)


def test_added_token_with_the_id_of_another_is_the_models_fault(tmp_path: Path) -> None:
    write_qwen2_bpe(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": 0}))
    with pytest.raises(ModelError, match="added token '<new>' has the id 0.*0 is that of '!'"):
        PromptTokenizer.from_folder(tmp_path)
