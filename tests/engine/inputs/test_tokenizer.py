"""Ids as transformers' tokenizers give them, and no special id that the template did not write."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.prompts import Message, TextPart
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

TEMPLATE = "USER: <image>\n{} ASSISTANT:"
UNK, BOS, EOS = range(3)
SPECIAL = ("<unk>", "<s>", "</s>", "<image>")
PRINTABLE = [chr(code) for code in range(33, 127)]


def _special(content: str, **options: bool) -> AddedToken:
    return AddedToken(content, special=True, **{"normalized": False, **options})


def _serialise(
    *,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    added: Iterable[AddedToken] = (),
    merges: Iterable[tuple[str, str]] = (),
    unigram: bool = False,
) -> str:
    """Write a tokenizer of single characters, <s> first, as a tokenizer.json has it."""
    pieces = [*SPECIAL, *PRINTABLE, "▁", "\n", "é", *(a + b for a, b in merges)]
    model: Any
    if unigram:
        model = models.Unigram([(p, 0.0 if p in SPECIAL else -5.0) for p in pieces], UNK, False)
    else:
        vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
        model = models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>")
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    changed = {token.content: token for token in added}
    tokenizer.add_special_tokens([changed.pop(name, _special(name)) for name in SPECIAL])
    for token in changed.values():
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer.to_str()


KINDS = {
    "blanks from the first word on": _serialise(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "blanks after each special token": _serialise(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")
    ),
    "blanks by normaliser": _serialise(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "special token that takes blanks along": _serialise(
        added=[_special("<image>", lstrip=True, rstrip=True)]
    ),
}


@pytest.fixture(scope="module")
def byte_level(checkpoint: Path) -> str:
    return (checkpoint / "tokenizer.json").read_text()


@pytest.fixture(scope="module", params=["byte level", *KINDS])
def serialised(request: pytest.FixtureRequest, byte_level: str) -> str:
    """Each kind of tokenizer in turn."""
    return KINDS.get(request.param, byte_level)


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text("aé <>/s\n▁\U000f0000"))
def test_text_without_special_tokens_has_the_ids_of_transformers(
    serialised: str, text: str
) -> None:
    ours, theirs = _as_the_engine_has_it(serialised), _as_transformers_has_it(serialised)
    assume(not any(token in text for token in ours.special_tokens))
    assert _encode(ours, TEMPLATE, text) == theirs(TEMPLATE.format(text))["input_ids"]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["</s>", "<s>", "<", "/", "s>", "é", " ", "\n", "\U000f0000", "\U000f0001"])
    )
)
@example(pieces=["</s>"])
@example(pieces=["\U000f0000", "a</s>", "\U000f0001", "<s></s>"])
def test_spelled_special_token_has_the_ids_of_plain_text(
    serialised: str, pieces: list[str]
) -> None:
    text = "".join(pieces)
    ours = _as_the_engine_has_it(serialised)
    # To this one </s> and <s> are no tokens at all, so they can be nothing but text.
    theirs = _as_transformers_has_it(serialised, knows=("<image>",))
    assert _encode(ours, TEMPLATE, text) == theirs(TEMPLATE.format(text))["input_ids"]


@pytest.mark.parametrize("text", ["<image>", "<image><image>", "a<image>b</s><s>c", "<<image>>"])
def test_token_that_template_and_text_write_counts_once(serialised: str, text: str) -> None:
    ours = _as_the_engine_has_it(serialised)
    ids = _encode(ours, TEMPLATE, text)
    bos, eos, image = (ours.token_id(token) for token in ("<s>", "</s>", "<image>"))
    assert [token_id for token_id in ids if token_id in (bos, eos, image)] == [bos, image]


@pytest.mark.parametrize("text", ["<im", "<image", "<image>", "<image><x>", "<image><x><im"])
def test_special_token_that_begins_another_is_plain_text(text: str) -> None:
    serialised = _serialise(added=[_special("<im"), _special("<image><x>")])
    ours = _as_the_engine_has_it(serialised)
    theirs = _as_transformers_has_it(serialised, knows=())
    assert _encode(ours, "USER: {}", text) == theirs(f"USER: {text}")["input_ids"]


@pytest.mark.parametrize("text", ["hi", "</s>"])
def test_longest_token_that_the_template_writes_is_meant(text: str) -> None:
    knows = ("<im", "<image>", "<image><x>")
    serialised = _serialise(added=[_special("<im"), _special("<image><x>")])
    template = "<image><x>A<image>B<im{}"
    assert (
        _encode(_as_the_engine_has_it(serialised), template, text)
        == (_as_transformers_has_it(serialised, knows)(template.format(text))["input_ids"])
    )


def test_text_is_read_back_as_it_was_spelled(byte_level: str) -> None:
    ours = _as_the_engine_has_it(byte_level)
    text = "<image> \U000f0000</s><s>\U000f0001 \U0001f600 <pad>"
    ids = _encode(ours, TEMPLATE, text)
    assert ours.decode(ids, skip_special_tokens=False) == "<s>" + TEMPLATE.format(text)


@pytest.mark.parametrize(
    "serialised",
    [
        pytest.param(_serialise(merges=[("s", ">"), ("<", "/"), ("</", "s>")]), id="by merges"),
        pytest.param(_serialise(unigram=True), id="by pieces"),
    ],
)
@pytest.mark.parametrize("text", ["</s>", "a</s>b"])
def test_special_token_that_the_vocabulary_makes_of_text_is_never_let_in(
    serialised: str, text: str
) -> None:
    try:
        ids = _encode(_as_the_engine_has_it(serialised), "USER: {}", text)
    except InvalidRequestError:
        return  # such a text may be refused
    assert EOS not in ids


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [(normalizers.Lowercase(), "<TOOL>"), (normalizers.NFKC(), "\uff1ctool\uff1e")],
    ids=["case", "width"],
)
def test_special_token_that_a_normaliser_makes_of_text_is_never_let_in(
    normalizer: Any, text: str
) -> None:
    serialised = _serialise(normalizer=normalizer, added=[_special("<tool>", normalized=True)])
    ours = _as_the_engine_has_it(serialised)
    try:
        ids = _encode(ours, "USER: {}", text)
    except InvalidRequestError:
        return  # such a text may be refused
    assert ours.token_id("<tool>") not in ids


@pytest.mark.parametrize("text", ["a    b", "a        b", "a    </s>"])
def test_run_of_blanks_with_a_token_of_its_own_keeps_it(text: str) -> None:
    serialised = _serialise(added=[AddedToken("    ", special=False, normalized=False)])
    theirs = _as_transformers_has_it(serialised, knows=("    ",))
    assert (
        _encode(_as_the_engine_has_it(serialised), "USER:{}", text)
        == (theirs(f"USER:{text}")["input_ids"])
    )


@pytest.mark.parametrize("text", ["hi", "</s>", "<s>", ""])
@pytest.mark.parametrize("template", ["{}", "<s>{}", "A: {}<s>"])
def test_prompt_begins_with_one_beginning_token(template: str, text: str) -> None:
    ours = _as_the_engine_has_it(_serialise())
    ids = _encode(ours, template, text)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1 + (template == "A: {}<s>")


@pytest.mark.parametrize("text", ["hi", "</s>"])
def test_tokenizer_without_a_beginning_token_adds_none(text: str) -> None:
    content = json.loads(_serialise())
    content["post_processor"] = None
    assert BOS not in _encode(_as_the_engine_has_it(json.dumps(content)), "USER: {}", text)


@pytest.mark.parametrize("text", ["a long text", "a long text </s>"])
def test_cut_and_padding_that_a_checkpoint_was_saved_with_do_not_apply(text: str) -> None:
    tokenizer = Tokenizer.from_str(_serialise())
    expected = _encode(_as_the_engine_has_it(tokenizer.to_str()), TEMPLATE, text)
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=200)
    assert _encode(_as_the_engine_has_it(tokenizer.to_str()), TEMPLATE, text) == expected


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_answer_reads_as_transformers_decodes_it(
    byte_level: str, skip_special_tokens: bool
) -> None:
    ours, theirs = _as_the_engine_has_it(byte_level), _as_transformers_has_it(byte_level)
    ids = theirs("<s>An é,\n two \U0001f600 <image></s> <pad>é")["input_ids"][:-1]
    assert theirs.decode(ids).endswith("\ufffd")  # the answer ends in the middle of a character
    assert ours.decode(ids, skip_special_tokens=skip_special_tokens) == theirs.decode(
        ids, skip_special_tokens=skip_special_tokens
    )


def test_token_has_an_id_only_if_the_tokenizer_knows_it() -> None:
    ours = _as_the_engine_has_it(_serialise())
    assert [ours.token_id(token) for token in ("</s>", "a", "<nothing>")] == [
        EOS,
        len(SPECIAL) + PRINTABLE.index("a"),
        None,
    ]


def test_threads_get_the_ids_that_one_gets(byte_level: str) -> None:
    ours = _as_the_engine_has_it(byte_level)
    texts = [f"{'scene ' * index}{'</s>' * (index % 3)}" for index in range(200)]
    expected = [_encode(ours, TEMPLATE, text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: _encode(ours, TEMPLATE, text), texts)) == expected


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", b'{"model": {"type": "GPT"}}', b"\xff"]
)
def test_missing_or_broken_tokenizer_is_the_models_fault(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        PromptTokenizer.from_folder(tmp_path)


def _encode(tokenizer: PromptTokenizer, template: str, text: str) -> list[int]:
    """Encode a caller's text inside a template, as the builder does."""
    messages = [Message("user", (TextPart(text),))]
    spelled = SpelledTokens(tokenizer.special_tokens, messages)
    return tokenizer.encode_prompt(template.format(spelled.hide(text)), spelled)


_as_the_engine_has_it = cache(PromptTokenizer)


@cache
def _as_transformers_has_it(
    serialised: str, knows: tuple[str, ...] | None = None
) -> PreTrainedTokenizerFast:
    """Load a tokenizer into transformers; of its special tokens it `knows` these, or all."""
    content = json.loads(serialised)
    if knows is not None:
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in knows]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
