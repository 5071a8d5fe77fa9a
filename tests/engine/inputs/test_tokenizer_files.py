"""A checkpoint without a tokenizer.json has the ids that its authors' code gives it."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaTokenizer

from tests.tiny_tokenizers import (
    INTERNLM2_TOKENS,
    corpus,
    write_internlm2,
    write_llama_sentencepiece,
    write_qwen2_bpe,
)
from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.inputs.prompts import Message, TextPart
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.tokenizer import PromptTokenizer

BOS, EOS = 1, 2
PHI3_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>")
STRETCHES = [*"ab <>|.\n\t▁你é\U0001f642", "  ", " the", "</s>", "<s>", "<im", "g>", "<0x41>"]


def write_phi3(folder: Path) -> dict[str, int]:
    """LLaMA's pieces and tokens behind them that take the blanks behind them along."""
    size = write_llama_sentencepiece(folder, config={"legacy": False})
    ids = {token: size + index for index, token in enumerate(PHI3_TOKENS)}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(token_id): {"content": token, "rstrip": True, "special": True}
        for token, token_id in ids.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    return ids


class Oracle:
    """Cuts a text at the added tokens, and lets sentencepiece encode what is between."""

    def __init__(self, folder: Path, added: dict[str, int], *, legacy: bool, rstrip: bool) -> None:
        raw = (folder / "tokenizer.model").read_bytes()
        self.with_blank = sentencepiece.SentencePieceProcessor(model_proto=raw)
        self.added, self.legacy, self.rstrip = added, legacy, rstrip
        tokens = sorted(added, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, tokens))})")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        before = ""
        for place, chunk in enumerate(self.pattern.split(text)):
            if chunk in self.added:
                ids.append(self.added[chunk])
            else:
                if self.rstrip and before in PHI3_TOKENS:
                    chunk = re.sub(r"\A\s+", "", chunk)
                ids += self.encode_chunk(chunk, is_first=place == 0)
            before = chunk
        return ids

    def encode_chunk(self, chunk: str, *, is_first: bool) -> list[int]:
        if not chunk:
            return []
        if self.legacy or is_first:
            return self.with_blank.encode(chunk)
        # A line is a piece by itself, in this model: what follows it begins no text.
        line = self.with_blank.encode("\n")
        ids = self.with_blank.encode("\n" + chunk)
        assert ids[: len(line)] == line
        return ids[len(line) :]


@cache
def _both(name: str, folder: Path) -> tuple[PromptTokenizer, Oracle]:
    folder = folder / name
    own = {"<unk>": 0, "<s>": BOS, "</s>": EOS}
    if name == "InternLM2":
        own |= write_internlm2(folder)
    elif name == "InternLM2 without a decoder":
        own |= write_internlm2(folder, with_decoder=False)
    elif name == "Phi-3":
        own |= write_phi3(folder)
    else:
        write_llama_sentencepiece(folder, config={"legacy": name == "legacy Llama"})
    oracle = Oracle(folder, own, legacy=name not in ("Llama", "Phi-3"), rstrip=name == "Phi-3")
    return PromptTokenizer.from_folder(folder), oracle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


NAMES = ("Llama", "legacy Llama", "InternLM2", "InternLM2 without a decoder", "Phi-3")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from([*STRETCHES, *INTERNLM2_TOKENS, *PHI3_TOKENS]), max_size=14).map(
        "".join
    )
    | st.sampled_from(corpus()[:100])
)
@example("<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\n你好<|im_end|>")
@example("<|user|>\n the image<|end|>  \n<|assistant|>\n")
@example(" hi</s> hi</s>hi")
def test_text_is_cut_at_added_tokens_and_each_part_has_sentencepieces_ids(
    name: str, folder: Path, text: str
) -> None:
    ours, theirs = _both(name, folder)
    assert ours.encode_text(text) == theirs.encode(text)


@pytest.mark.parametrize("name", NAMES)
def test_added_tokens_have_the_ids_of_the_checkpoints_files(name: str, folder: Path) -> None:
    ours, theirs = _both(name, folder)
    assert {token: ours.token_id(token) for token in theirs.added} == theirs.added
    assert [ours.token(token_id) for token_id in theirs.added.values()] == list(theirs.added)
    assert set(ours.special_tokens) == set(theirs.added)
    assert ours.num_ids == max(640, 1 + max(theirs.added.values()))


def test_llamas_text_has_the_ids_of_transformers(folder: Path) -> None:
    ours, _ = _both("Llama", folder)
    theirs = LlamaTokenizer.from_pretrained(folder / "Llama", legacy=False)
    for text in (*corpus()[:300], "USER: the image\n\twhat  is </s>USER: it?</s> ASSISTANT:"):
        assert ours.encode_text(text) == theirs(text, add_special_tokens=False)["input_ids"]
        ids = ours.encode_text(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["hi", "</s>", "a <|im_end|><img></s><|end|> b", "<s>"])
def test_what_a_caller_writes_is_text(name: str, folder: Path, text: str) -> None:
    ours, theirs = _both(name, folder)
    ids = _encode(ours, "</s>{} the", text)
    assert ids[:2] == [BOS, EOS]
    assert not set(theirs.added.values()) & set(ids[2:])
    assert ours.decode(ids) == f"{text} the"


def test_piece_whose_place_an_added_token_takes_is_no_way_to_write_it(folder: Path) -> None:
    ours, theirs = _both("InternLM2", folder)
    assert theirs.with_blank.encode("[UNUSED_TOKEN_4]")[-1] == theirs.added["<|im_end|>"]
    assert theirs.added["<|im_end|>"] not in ours.encode_text("[UNUSED_TOKEN_4]")


@pytest.mark.parametrize(
    ("config", "beginning"),
    [
        ({}, [BOS]),
        ({"add_bos_token": True}, [BOS]),
        ({"add_bos_token": False}, []),
        ({"add_eos_token": True}, [BOS]),
        ({"bos_token": "</s>"}, [EOS]),
        ({"bos_token": {"content": "<s>"}}, [BOS]),
        ({"bos_token": None}, [BOS]),
    ],
    ids=repr,
)
def test_prompt_begins_as_the_config_says(
    tmp_path: Path, config: dict[str, Any], beginning: list[int]
) -> None:
    write_llama_sentencepiece(tmp_path, config=config)
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    assert tokenizer.beginning == beginning
    assert _encode(tokenizer, "{}", "the") == [*beginning, *tokenizer.encode_text("the")]
    assert _encode(tokenizer, "<s>{}", "").count(BOS) == 1


def test_model_by_itself_is_a_tokenizer(tmp_path: Path) -> None:
    write_llama_sentencepiece(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    assert tokenizer.beginning == [BOS]
    assert set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>"}


def test_tokenizer_json_comes_first_and_sentencepiece_second(tmp_path: Path) -> None:
    write_qwen2_bpe(tmp_path)
    assert PromptTokenizer.from_folder(tmp_path).num_ids == 524
    (tmp_path / "added_tokens.json").unlink()
    write_llama_sentencepiece(tmp_path)
    assert PromptTokenizer.from_folder(tmp_path).token_id("<s>") == BOS
    other = tmp_path / "other"
    write_internlm2(other)
    serialised = PromptTokenizer.from_folder(other).serialised
    (tmp_path / "tokenizer.json").write_text(serialised)
    assert PromptTokenizer.from_folder(tmp_path).num_ids == 649


@pytest.mark.parametrize("left_out", ["vocab.json", "merges.txt"])
def test_folder_without_a_tokenizer_is_told_what_it_could_hold(
    tmp_path: Path, left_out: str
) -> None:
    write_qwen2_bpe(tmp_path)
    (tmp_path / left_out).unlink()
    looked_for = r"tokenizer\.json, a tokenizer\.model, or a vocab\.json with a merges\.txt"
    with pytest.raises(ModelError, match=f"{tmp_path}: no tokenizer.*{looked_for}"):
        PromptTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ({"<new>": 300}, r"tokenizer\.model: .*'<new>' has the id 300.*that of the piece '.+'"),
        ({"the": 700}, r"tokenizer\.model: 'the' has two ids, \d+ and 700"),
        ({"<new>": 3}, r"'<new>' has the id 3, which is that of the piece '<0x00>'"),
    ],
    ids=repr,
)
def test_added_token_that_clashes_with_a_piece_is_the_models_fault(
    tmp_path: Path, added: dict[str, int], reason: str
) -> None:
    write_llama_sentencepiece(tmp_path)
    if "the" in added:  # any piece
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
        assert pieces.piece_to_id("the") > 0
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ModelError, match=reason):
        PromptTokenizer.from_folder(tmp_path)


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    """What a caller spells is text, and no other token's, where ids leave some out."""
    ids = write_internlm2(tmp_path, extra_tokens=INTERNLM2_TOKENS[:6])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids | {"<img>": 642, "</img>": 650}))
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    assert [tokenizer.token_id(token) for token in ("<img>", "</img>")] == [642, 650]
    assert tokenizer.num_ids == 651
    template, text = "<img><|im_end|>{}</img>", " a </img><img></s>"
    encoded = _encode(tokenizer, template, text)
    assert encoded[1:3] == [642, ids["<|im_end|>"]]
    assert encoded[-1] == 650
    assert tokenizer.decode(encoded[3:-1]) == text


def test_added_token_that_no_config_calls_special_is_part_of_an_answer(tmp_path: Path) -> None:
    write_llama_sentencepiece(tmp_path, config={"additional_special_tokens": ["<a>"]})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": 640, "<b>": 641}))
    tokenizer = PromptTokenizer.from_folder(tmp_path)
    assert tokenizer.decode([640, 641]) == "<b>"
    assert tokenizer.encode_text("<a><b>") == [640, 641]
    assert not {640, 641} & set(_encode(tokenizer, "{}", "<a><b>"))  # nor is it a caller's to write


def test_worker_needs_neither_sentencepiece_nor_protobuf_nor_transformers(tmp_path: Path) -> None:
    write_internlm2(tmp_path)
    program = (
        "import sys\n"
        "for name in ('sentencepiece', 'google.protobuf', 'transformers', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from vlmflow_engine.inputs.tokenizer import PromptTokenizer\n"
        "print(PromptTokenizer.from_folder(Path(sys.argv[1])).num_ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("649\n", "")


def _encode(tokenizer: PromptTokenizer, template: str, text: str) -> list[int]:
    """Encode a caller's text inside a template, as the builder does."""
    messages = [Message("user", (TextPart(text),))]
    spelled = SpelledTokens(tokenizer.special_tokens, messages)
    try:
        return tokenizer.encode_prompt(template.format(spelled.hide(text)), spelled)
    except InvalidRequestError as error:
        raise AssertionError(f"refused: {error}") from error
