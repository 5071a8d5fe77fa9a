"""What is refused, which tokens are allowed, and when an answer ends."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from tests.engine.runner.grammars import (
    EOS,
    SPECIAL,
    allowed,
    as_regex,
    as_schema,
    byte_level,
    decode,
    make_compiler,
    masked,
    write,
)
from vlmflow_engine.errors import InvalidRequestError, UnsupportedFeatureError
from vlmflow_engine.runner import grammar as grammar_module
from vlmflow_engine.runner.grammar import Grammar, GrammarCompiler, mask_rows


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (as_schema({"type": "colour"}), "Invalid type: colour"),
        (as_schema({"type": "string", "minLength": 3, "maxLength": 1}), "minLength .3. is greater"),
        (as_schema({"type": "integer", "minimum": 3, "maximum": 1}), "minimum .3. is greater"),
        (as_schema({"enum": []}), "Unsatisfiable schema"),
        (as_schema({"allOf": [{"const": 1}, {"const": 2}]}), "Unsatisfiable schema"),
        (as_schema(False), "schema is false"),
        (as_schema({"$ref": "#"}), "no text .* satisfies it"),
        (as_schema({"$ref": "#/$defs/none"}), "'/[$]defs/none' does not exist"),
        (as_schema({"$ref": "http://localhost/schema"}), "is not present in a registry"),
        (as_schema({"not": {"type": "string"}}), r'Unimplemented keys: \["not"\]'),
        (as_schema({"type": "array", "uniqueItems": True}), "Unimplemented keys"),
        (as_schema({"type": "string", "format": "colour"}), "Unknown format: colour"),
        (as_schema({"type": "string", "pattern": "("}), "unclosed group"),
        (as_schema({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "oneOf needs branches"),
        (as_regex("("), "unclosed group"),
        (as_regex("a{3,1}"), "invalid repetition count range"),
        (as_regex(r"(a)\1"), "backreferences are not supported"),
        (as_regex("(?=a)b"), "look-ahead .* not supported"),
        (as_regex("[a&&b]"), "no text .* satisfies it"),
        (as_regex("(" * 1000 + "a" + ")" * 1000), "nested parentheses"),
    ],
)
def test_what_cannot_be_satisfied_or_read_is_refused_with_a_sentence(
    compiler, response_format, message
):
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InvalidRequestError, match=f"^response_format: .*{message}") as caught:
            compiler.compile(response_format)
        assert "\n" not in str(caught.value)


def test_repetitions_of_repetitions_are_compiled_at_once(compiler):
    matcher = compiler.compile(as_regex("(((ab{1000}){1000}){1000}){1000}")).new_matcher()
    for _ in range(50):
        matcher.accept(max(allowed(matcher)))
    assert matcher.error is None


def test_the_end_is_allowed_exactly_when_the_answer_is_complete():
    b = Tokenizer.from_str(byte_level()).token_to_id("b")
    ends = (EOS, 399, b)  # one beyond the tokenizer, and one that spells text
    compiler = make_compiler(eos=ends)
    complete = incomplete = 0
    for seed in range(20):
        matcher = compiler.compile(as_regex("(a[^b]{0,2}c?){1,3}")).new_matcher()
        generator = torch.Generator().manual_seed(seed)
        while not matcher.is_finished:
            row = masked(matcher, torch.randn(400, generator=generator))
            assert [bool(row[end].isfinite()) for end in ends] == [matcher.can_end] * 3
            complete, incomplete = complete + matcher.can_end, incomplete + (not matcher.can_end)
            matcher.accept(int(row.argmax()))
        assert matcher.can_end
        assert allowed(matcher) == set(ends)
    assert complete > 10
    assert incomplete > 10


def test_after_the_grammars_end_only_the_end_may_follow(compiler):
    matcher = compiler.compile(as_regex("(a|b)")).new_matcher()
    assert not matcher.is_finished
    matcher.accept(max(allowed(matcher)))
    assert matcher.is_finished
    assert matcher.can_end
    assert allowed(matcher) == {EOS}
    matcher.accept(EOS)
    assert matcher.is_finished
    assert matcher.can_end
    assert allowed(matcher) == {EOS}


def test_an_answer_that_may_go_on_is_finished_by_its_end(compiler):
    matcher = compiler.compile(as_regex("a+")).new_matcher()
    matcher.accept(Tokenizer.from_str(byte_level()).token_to_id("a"))
    assert matcher.can_end
    assert not matcher.is_finished
    matcher.accept(EOS)
    assert matcher.is_finished
    assert matcher.can_end
    assert allowed(matcher) == {EOS}


def test_special_tokens_are_never_allowed_even_where_they_spell_the_text(compiler):
    for text in SPECIAL:
        for response_format in (as_regex(re.escape(text)), as_schema({"const": text})):
            matcher = compiler.compile(response_format).new_matcher()
            written = write(matcher)
            assert not set(written) & {0, 1, 2, 3}
            assert text in decode(written)
    anything = compiler.compile(as_regex("(?s:.*)")).new_matcher()
    assert allowed(anything) & {0, 1, 2, 3} == {EOS}


def test_without_an_end_token_no_special_token_ends_the_answer():
    matcher = make_compiler(eos=()).compile(as_regex("a+b?")).new_matcher()
    letters = [Tokenizer.from_str(byte_level()).token_to_id(letter) for letter in "ab"]
    matcher.accept(letters[0])
    assert matcher.can_end
    assert not allowed(matcher) & {0, 1, 2, 3}  # though the library looks for "</s>" by itself
    matcher.accept(letters[1])
    assert matcher.is_finished
    assert allowed(matcher) == set()


@pytest.mark.parametrize("vocab_size", [512, 300])
def test_logits_may_be_wider_or_narrower_than_the_tokenizer(vocab_size):
    compiler = make_compiler(vocab_size=vocab_size)
    size = Tokenizer.from_str(byte_level()).get_vocab_size()
    assert 300 < size < 512
    matcher = compiler.compile(as_regex("(?s:.*)")).new_matcher()
    inside = allowed(matcher, vocab_size=vocab_size)
    assert max(inside) == min(size, vocab_size) - 1


def test_rows_without_a_grammar_are_untouched(compiler):
    grammar = compiler.compile(as_regex("[0-9]{3}"))
    matchers = {row: grammar.new_matcher() for row in (1, 3)}
    logits = torch.randn(4, 400)
    before = logits.clone()
    mask_rows(logits, matchers)
    assert torch.equal(logits[0::2], before[0::2])
    for row in (1, 3):
        assert torch.equal(logits[row], masked(grammar.new_matcher(), before[row]))
        assert 10 <= logits[row].isfinite().sum() < 40
    untouched = before.clone()
    mask_rows(untouched, {})
    assert torch.equal(untouched, before)


def test_masking_keeps_the_logits_of_allowed_tokens(compiler):
    matcher = compiler.compile(as_regex("[0-9]{3}")).new_matcher()
    logits = torch.randn(400)
    row = masked(matcher, logits)
    kept = row.isfinite()
    assert torch.equal(row[kept], logits[kept])
    assert (row[~kept] == -torch.inf).all()


def test_state_depends_on_the_accepted_tokens_alone(compiler):
    grammar = compiler.compile(as_schema({"type": "array"}))
    first = grammar.new_matcher()
    written: list[int] = []
    for token_id in Tokenizer.from_str(byte_level()).encode('[12, "é",\n null]').ids:
        again = grammar.new_matcher()  # masks were never asked of it
        for earlier in written:
            again.accept(earlier)
        assert allowed(again) == allowed(first)
        assert (again.can_end, again.is_finished) == (first.can_end, first.is_finished)
        written.append(token_id)
        first.accept(token_id)
    assert first.is_finished
    assert first.can_end


def test_matchers_of_one_grammar_do_not_move_one_another(compiler):
    grammar = compiler.compile(as_regex("abc"))
    one, other = grammar.new_matcher(), grammar.new_matcher()
    before = allowed(other)
    one.accept(Tokenizer.from_str(byte_level()).token_to_id("a"))
    assert allowed(one) != before
    assert allowed(other) == before == allowed(grammar.new_matcher())


def test_equal_forms_share_a_grammar_and_properties_keep_their_order(compiler):
    forward = {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    backward = {"properties": {"b": {"const": 2}, "a": {"const": 1}}, "required": ["a", "b"]}
    schemas = [{"type": "object", "additionalProperties": False, **s} for s in (forward, backward)]
    assert compiler.compile(as_schema(schemas[0])) is compiler.compile(as_schema(dict(schemas[0])))
    for schema, names in zip(schemas, (["a", "b"], ["b", "a"]), strict=True):
        text = decode(write(compiler.compile(as_schema(schema)).new_matcher()))
        assert list(json.loads(text)) == names


def test_threads_compile_and_write_beside_one_another():
    compiler = make_compiler()
    formats = [as_regex(f"[a-e]{{{n},{n + 9}}}x?[0-9]*y") for n in range(4)] * 8

    def answer(response_format: dict[str, Any]) -> tuple[Grammar, list[int]]:
        grammar = compiler.compile(response_format)
        return grammar, write(grammar.new_matcher())

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, formats))
    for index, (grammar, written) in enumerate(answers):
        assert grammar is answers[index % 4][0]
        assert written == write(make_compiler().compile(formats[index]).new_matcher())


def test_a_token_that_the_mask_forbids_ends_the_answer_as_incomplete(compiler):
    matcher = compiler.compile(as_regex("[0-9]{3}")).new_matcher()
    wrong = min(set(range(4, 360)) - allowed(matcher))
    matcher.accept(wrong)
    assert matcher.error == f"token {wrong} does not continue the answer"
    assert matcher.is_finished
    assert not matcher.can_end
    assert allowed(matcher) == {EOS}


def test_an_end_that_comes_too_early_leaves_an_incomplete_answer(compiler):
    matcher = compiler.compile(as_regex("[0-9]{3}")).new_matcher()
    matcher.accept(EOS)  # by a stop word, say
    assert matcher.is_finished
    assert not matcher.can_end


def test_too_much_work_in_a_step_fails_the_answer_and_not_the_step(monkeypatch):
    monkeypatch.setattr(grammar_module, "_MAX_LEXER_STATES", 60)
    matcher = make_compiler().compile(as_regex("[ab]*a[ab]{18}x")).new_matcher()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        row = masked(matcher, torch.randn(400, generator=generator))
        assert row.isfinite().any()
        if matcher.is_finished:
            break
        matcher.accept(int(row.argmax()))
    assert matcher.error is not None
    assert "more work than is allowed" in matcher.error
    assert not matcher.can_end
    assert allowed(matcher) == {EOS}


def test_what_the_vocabulary_cannot_spell_is_found_at_the_start_or_where_it_comes():
    pieces = [*SPECIAL, *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.decoder = decoders.ByteLevel()
    compiler = make_compiler(tokenizer.to_str())
    with pytest.raises(InvalidRequestError, match="no text that this vocabulary can spell"):
        compiler.compile(as_regex("ж"))
    matcher = compiler.compile(as_regex("aж")).new_matcher()
    matcher.accept(tokenizer.token_to_id("a"))
    assert allowed(matcher) == {EOS}
    assert matcher.is_finished
    assert not matcher.can_end
    assert "vocabulary" in str(matcher.error)


def test_a_tokenizer_of_words_is_refused():
    words = {"<unk>": 0, "</s>": 1, "yes": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>")).to_str()
    with pytest.raises(UnsupportedFeatureError, match="byte-level or byte-fallback"):
        make_compiler(tokenizer).compile(as_regex("yes"))


def test_the_tokenizer_is_prepared_once_and_at_first_use(monkeypatch):
    prepared = []
    original = grammar_module._Vocabulary

    def prepare(*arguments: Any) -> Any:
        prepared.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(grammar_module, "_Vocabulary", prepare)
    compiler = make_compiler()
    assert not prepared
    compiler.compile(as_regex("a"))
    compiler.compile(as_regex("b"))
    assert len(prepared) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_masks_on_a_cuda_device_are_those_of_the_cpu(compiler):
    grammar = compiler.compile(as_regex("[0-9]{3}"))
    matchers = {row: grammar.new_matcher() for row in range(3)}
    for rows in (matchers, {row: matchers[row] for row in (0, 2)}):
        logits = torch.randn(3, 400)
        on_device = logits.cuda()
        mask_rows(on_device, rows)
        mask_rows(logits, rows)
        assert torch.equal(on_device.cpu(), logits)
