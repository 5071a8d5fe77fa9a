"""Whatever a model prefers, here random logits, the answer is of the form that was asked for."""

import json
import re

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer

from tests.engine.runner.grammars import (
    VOCAB_SIZE,
    allowed,
    as_regex,
    as_schema,
    byte_fallback,
    byte_level,
    decode,
    make_compiler,
    write,
)
from tests.engine.runner.schemas import SchemaMaker
from vlmflow_engine.runner.grammar import GrammarCompiler


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


@pytest.mark.parametrize("part", range(10))
def test_answers_to_200_random_schemas_are_valid(compiler, part):
    maker = SchemaMaker(part)
    for seed in range(20):
        schema = maker.make()
        text = decode(write(compiler.compile(as_schema(schema)).new_matcher(), seed))
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_a_json_object_is_one(compiler):
    for seed in range(5):
        # A model that is fond of the end of things: random ones write books into a string.
        closing = torch.zeros(VOCAB_SIZE)
        closing[[i for i in range(4, 360) if set(decode([i])) & set('"}]')]] = 4.0
        text = decode(
            write(compiler.compile({"type": "json_object"}).new_matcher(), seed, bias=closing)
        )
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "regex",
    [
        r"\d{4}-\d{2}-\d{2}",
        "^(yes|no)$",
        "^yes|no$",
        r"[A-Z][a-z]{2,5}( [A-Z][a-z]{2,5})?",
        r"(?i)answer: (a|b)",
        "[é✓😀日]{3,6}",
        r"[^\x00-\x7f]{2}",
        r"\w{3}\s\S\D{2}\W",
        r"a/b\\c\.",
        "a\nb",
        "(?:)",
        "x{0,3}?y*?z",
        r'"[^"]{0,4}"',
        " a",
        " {3}",
        "( ?x){2}",
    ],
)
@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback])
def test_answers_match_the_whole_regex(regex, tokenizer):
    grammar = make_compiler(tokenizer()).compile(as_regex(regex))
    for seed in range(8):
        text = decode(write(grammar.new_matcher(), seed), tokenizer())
        # Letters have the cases of Unicode; classes are those of ASCII.
        assert re.fullmatch(regex, text, 0 if "(?i)" in regex else re.ASCII), text


def test_schemas_hold_where_the_decoder_takes_a_blank_off():
    schema = {"type": "object", "properties": {"a": {"maxLength": 3, "type": "string"}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    grammar = make_compiler(byte_fallback()).compile(as_schema(schema))
    opening = Tokenizer.from_str(byte_fallback()).token_to_id("▁{")
    assert opening in allowed(grammar.new_matcher())  # as such a model begins an answer
    for seed in range(20):
        text = decode(write(grammar.new_matcher(), seed), byte_fallback())
        assert text[0] == "{"
        jsonschema.validate(json.loads(text), schema)


def test_characters_may_be_split_over_tokens(compiler):
    matcher = compiler.compile(as_regex("😀")).new_matcher()
    first = Tokenizer.from_str(byte_level()).encode("😀").ids[0]
    bytes_of_it = decode([first])
    assert bytes_of_it == "�"  # a part of the character, else the test shows nothing
    assert first in allowed(matcher)
    matcher.accept(first)
    assert not matcher.can_end
    assert decode([first, *write(matcher)]) == "😀"


def test_a_model_that_is_fond_of_blanks_comes_to_an_end(compiler):
    blank = torch.zeros(VOCAB_SIZE)
    blank[[i for i in range(4, 360) if decode([i]).isspace()]] = 100.0
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"enum": [1]}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    text = decode(write(compiler.compile(as_schema(schema)).new_matcher(), bias=blank))
    assert json.loads(text) == {"a": None, "b": 1}
    runs = [len(run) for run in re.findall(r"\s+", text)]
    assert max(runs) == 17  # a line feed and sixteen blanks, at each place once
    assert len(runs) <= 8
