"""Words as token ids: whatever of an answer spells one is found among what is banned."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from vlmflow_engine.inputs.tokenizer import PromptTokenizer
from vlmflow_engine.inputs.word_ids import banned_sequences, special_stop_ids


@pytest.fixture(scope="module")
def byte_level(checkpoint: Path) -> str:
    """Trained on scenes and the licence: a blank, "Ġ", belongs to the token behind it."""
    return (checkpoint / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def llama_like() -> str:
    """Blanks as "▁", bytes as a fallback, the first blank of a text dropped when it is read."""
    special = ["<unk>", "<s>", "</s>"]
    letters = [chr(code) for code in range(97, 123)]
    merges = [("b", "a"), ("ba", "d"), ("▁", "bad"), ("bad", "ly"), ("l", "y"), ("▁", "a")]
    merges.sort(key=lambda pair: pair == ("bad", "ly"))
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    pieces += [a + b for a, b in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


@pytest.fixture(scope="module", params=["byte_level", "llama_like"])
def serialised(request: pytest.FixtureRequest) -> str:
    """Each kind of tokenizer in turn."""
    serialised: str = request.getfixturevalue(request.param)
    return serialised


@pytest.fixture(scope="module")
def tokenizer(serialised: str) -> PromptTokenizer:
    return PromptTokenizer(serialised)


def is_banned(ids: list[int], banned: tuple[tuple[int, ...], ...]) -> bool:
    """Whether generating these ids would have met a ban."""
    return any(
        tuple(ids[end - len(one) : end]) == one
        for one in banned
        for end in range(len(one), len(ids) + 1)
    )


@pytest.mark.parametrize("word", ["bad", "cube", "the", "é", "zqx", "very bad", "bad\nly", "."])
@pytest.mark.parametrize("text", ["{}", "a {} dog", "a\n{}", "a\n {}.", "{} {}"])
def test_a_word_is_banned_as_the_tokenizer_spells_it_wherever_it_stands(tokenizer, word, text):
    banned = banned_sequences(tokenizer, [word])
    assert is_banned(tokenizer.encode_text(text.replace("{}", word)), banned)
    assert not is_banned(tokenizer.encode_text("a dog"), banned)


@pytest.mark.parametrize("word", ["a", "ba", "re", "bad", "the", " a"])
def test_every_token_that_contains_a_word_is_banned_by_itself(serialised, tokenizer, word):
    containing = {
        (token_id,)
        for piece, token_id in json.loads(serialised)["model"]["vocab"].items()
        if word in piece.replace("Ġ", " ").replace("▁", " ").replace("<0x61>", "a")
    }
    banned = banned_sequences(tokenizer, [word])
    assert {ids for ids in banned if len(ids) == 1} == containing


def test_a_leading_blank_is_part_of_a_word(tokenizer):
    banned = banned_sequences(tokenizer, [" a"])
    assert is_banned(tokenizer.encode_text("b a"), banned)
    assert not is_banned(tokenizer.encode_text("ba")[-1:], banned)


def test_nothing_is_banned_twice_or_in_vain(tokenizer):
    banned = banned_sequences(tokenizer, ["bad", "bad", "zqx"])
    assert len(set(banned)) == len(banned)
    outright = {ids[0] for ids in banned if len(ids) == 1}
    assert all(not outright & set(ids) for ids in banned if len(ids) > 1)
    beginning = tokenizer.token_id("<s>")
    assert not any(beginning in ids for ids in banned)  # which no answer holds
    assert any(len(ids) > 1 for ids in banned)


def test_a_word_is_banned_where_a_new_line_is_no_token_by_itself(llama_like):
    content = json.loads(llama_like)
    content["pre_tokenizer"] = None
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "\n"}, "content": "q"}
    vocabulary = content["model"]["vocab"]
    vocabulary["qb"] = len(vocabulary)
    content["model"]["merges"].insert(0, ["q", "b"])
    tokenizer = PromptTokenizer(json.dumps(content))
    assert tokenizer.encode_text("\nbad")[0] == vocabulary["qb"]
    assert is_banned(tokenizer.encode_text("bad dog"), banned_sequences(tokenizer, ["bad dog"]))


def test_a_special_token_may_be_a_bad_word(tokenizer):
    assert banned_sequences(tokenizer, ["</s>"]) == ((tokenizer.token_id("</s>"),),)


def test_no_words_ban_nothing(tokenizer):
    assert banned_sequences(tokenizer, []) == ()


def test_stop_words_that_are_special_tokens_become_ids(tokenizer):
    ids, others = special_stop_ids(tokenizer, ["dog", "</s>", "</s", "a", "<s>", " </s>"])
    assert ids == [tokenizer.token_id("</s>"), tokenizer.token_id("<s>")]
    assert others == ["dog", "</s", "a", " </s>"]


def test_a_vocabulary_with_gaps_is_read_by_id(checkpoint):
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 9999
    tokenizer = PromptTokenizer(json.dumps(content))
    word = tokenizer.decode([9999])
    assert (9999,) in banned_sequences(tokenizer, [word])
