"""An image token that the vocabulary does not know: the original LLaVA's <image>."""

from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizers import write_llama_sentencepiece, write_qwen2_bpe
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.image_token import find_image_token
from vlmflow_engine.inputs.prompts import Message, TextPart
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

BOS, EOS = 1, 2
IMAGE = "<image>"
IMAGE_ID = -200
TEXTS = st.lists(
    st.sampled_from([*"ab <>\n▁é你", "  ", " the", "<im", "age>", IMAGE, "</s>", "<s>"]), max_size=8
).map("".join)


@cache
def _checkpoint(
    folder: Path, legacy: bool
) -> tuple[PromptTokenizer, sentencepiece.SentencePieceProcessor]:
    folder = folder / str(legacy)
    write_llama_sentencepiece(folder, config={"legacy": legacy})
    return (
        PromptTokenizer.from_folder(folder),
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llava")


def _encode(tokenizer: PromptTokenizer, template: str, text: str = "") -> list[int]:
    """Encode a caller's text inside a template, as the builder does."""
    messages = [Message("user", (TextPart(text),))]
    spelled = SpelledTokens(tokenizer.special_tokens, messages)
    return tokenizer.encode_prompt(template.replace("{}", spelled.hide(text)), spelled)


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=200, deadline=None)
@given(chunks=st.lists(st.text("ab <>\n▁é你 the"), min_size=1, max_size=5))
@example(chunks=["USER: ", "\nWhat is it? ASSISTANT:"])
@example(chunks=["", " the image"])
@example(chunks=["a", "", "", " "])
def test_prompt_is_cut_at_the_image_and_each_part_is_a_text_of_its_own(
    legacy: bool, folder: Path, chunks: list[str]
) -> None:
    """LLaVA's rule: each part with its <s>, of which the first is kept."""
    tokenizer, theirs = _checkpoint(folder, legacy)
    expected = [BOS]
    for index, chunk in enumerate(chunks):
        expected += [IMAGE_ID] * (index > 0) + theirs.encode(chunk)
    ours = tokenizer.with_placeholder(IMAGE, IMAGE_ID)
    assert _encode(ours, IMAGE.join(chunks)) == expected


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text=IMAGE)
@example(text="</s><s><image>")
def test_image_that_a_caller_spells_is_text(legacy: bool, folder: Path, text: str) -> None:
    tokenizer, theirs = _checkpoint(folder, legacy)
    ours = tokenizer.with_placeholder(IMAGE, IMAGE_ID)
    template = f"USER: {IMAGE}\n{{}} ASSISTANT:"
    assert _encode(ours, template, text) == [
        BOS,
        *theirs.encode("USER: "),
        IMAGE_ID,
        *theirs.encode(f"\n{text} ASSISTANT:"),
    ]


def test_special_tokens_beside_an_image_stay_special(folder: Path) -> None:
    tokenizer, theirs = _checkpoint(folder, False)
    ours = tokenizer.with_placeholder(IMAGE, IMAGE_ID)
    assert _encode(ours, f"<s>a</s>{IMAGE}</s> b") == [
        BOS,
        *theirs.encode("\na")[len(theirs.encode("\n")) :],
        EOS,
        IMAGE_ID,
        EOS,
        *theirs.encode("\n b")[len(theirs.encode("\n")) :],
    ]


def test_placeholder_is_a_special_token_of_its_id_and_the_tokenizer_stays_as_it_was(
    folder: Path,
) -> None:
    tokenizer, _ = _checkpoint(folder, True)
    known = set(tokenizer.special_tokens)
    ours = tokenizer.with_placeholder(IMAGE, IMAGE_ID)
    assert (ours.token_id(IMAGE), ours.token(IMAGE_ID)) == (IMAGE_ID, IMAGE)
    assert set(ours.special_tokens) == known | {IMAGE}
    assert ours.num_ids == tokenizer.num_ids
    assert (tokenizer.token_id(IMAGE), set(tokenizer.special_tokens)) == (None, known)
    assert IMAGE_ID not in _encode(tokenizer, f"a{IMAGE}b")


def test_placeholder_without_an_id_has_one_that_no_text_has(folder: Path, tmp_path: Path) -> None:
    tokenizer, _ = _checkpoint(folder, True)
    # Its <unk>: bytes spell all text, and there is a row of it in every embedding.
    assert tokenizer.with_placeholder(IMAGE).token_id(IMAGE) == 0
    write_qwen2_bpe(tmp_path)
    others = PromptTokenizer.from_folder(tmp_path)
    assert others.with_placeholder(IMAGE).token_id(IMAGE) == others.num_ids


def test_token_of_the_vocabulary_may_be_cut_at_too(tmp_path: Path) -> None:
    ids = write_qwen2_bpe(tmp_path)
    ours = PromptTokenizer.from_folder(tmp_path).with_placeholder("<img>", ids["<img>"])
    assert ours.special_tokens.count("<img>") == 1
    # The blank is of the second text, not of a word with what stands before it.
    assert _encode(ours, "a<img> b") == [
        *ours.encode_text("a"),
        ids["<img>"],
        *ours.encode_text(" b"),
    ]


def test_family_whose_image_token_is_outside_the_vocabulary_gets_such_a_tokenizer(
    folder: Path,
) -> None:
    tokenizer, _ = _checkpoint(folder, True)
    form = ImageFormat(processor="clip", token=IMAGE, is_outside_vocabulary=True)
    ours, token, token_id = find_image_token(folder, tokenizer, form)
    assert (token, token_id) == (IMAGE, 0)
    assert _encode(ours, IMAGE) == [BOS, token_id]
