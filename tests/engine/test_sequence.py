"""When an answer ends, and what it may not say next; no model, no tensors."""

import random
from typing import Any

import pytest

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Request
from vlmflow_engine.sequence import Sequence


class _Grammar:
    """Finished after so many tokens; its own matcher."""

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    def new_matcher(self) -> "_Grammar":
        return self

    @property
    def is_finished(self) -> bool:
        return self.num_left <= 0


def make_sequence(
    *,
    prompt: tuple[int, ...] = (1, 2, 3),
    room: int = 10**6,
    stop: tuple[int, ...] = (),
    banned: tuple[tuple[int, ...], ...] = (),
    grammar: Any = None,
    **generation: Any,
) -> Sequence:
    config = GenerationConfig(**generation)
    request = Request(0, prompt, (), config, 0, grammar=grammar, banned_sequences=banned)
    return Sequence(request, max_num_tokens=len(prompt) + room, stop_token_ids=frozenset(stop))


def run(sequence: Sequence, tokens: list[int]) -> tuple[int, str | None]:
    """Append until the answer ends; return its length and the reason."""
    for token in tokens:
        sequence.append(token)
        if sequence.finish_reason is not None:
            break
    return sequence.num_output_tokens, sequence.finish_reason


def test_an_answer_ends_with_a_stop_token_or_for_want_of_room():
    assert run(make_sequence(stop=(9,)), [5, 9, 5]) == (2, "stop")
    assert run(make_sequence(room=2), [5, 9, 5]) == (2, "length")
    assert run(make_sequence(room=2, stop=(9,)), [5, 9]) == (2, "stop")
    assert run(make_sequence(), [5, 9]) == (2, None)


def test_only_a_stop_token_is_no_part_of_the_answer():
    stopped = make_sequence(prompt=(1, 9), stop=(9,))
    assert not stopped.has_stop_token
    run(stopped, [5, 9])
    assert stopped.has_stop_token
    repeating = make_sequence(stop=(9,), repetition_ngram_size=1, repetition_ngram_threshold=2)
    assert run(repeating, [5, 5]) == (2, "stop")
    assert not repeating.has_stop_token
    full = make_sequence(room=1)
    run(full, [5])
    assert not full.has_stop_token


def test_an_answer_ends_when_its_grammar_is_finished():
    grammar = _Grammar(2)
    sequence = make_sequence(grammar=grammar, min_new_tokens=5)
    for _ in range(2):
        assert sequence.finish_reason is None
        grammar.num_left -= 1
        sequence.append(5)
    assert sequence.finish_reason == "stop" and not sequence.has_stop_token


# Those of LMDeploy's own tests: (output, size, threshold), and tokens until the answer ends.
@pytest.mark.parametrize(
    ("tokens", "size", "threshold", "length"),
    [
        ([2, 3, 4, 1, 2, 3, 4, 2, 3, 4], 3, 3, 10),
        ([9, 8, 7, 3, 8, 7, 5, 9, 8, 7], 3, 3, None),
        ([9, 8, 7, 3, 8, 7, 5, 9, 8, 7], 2, 3, 10),
        ([0, 0, 0, 0, 0, 0], 3, 3, 5),
        ([0, 0, 0, 0, 0, 0], 0, 3, None),
        ([0, 0, 0, 0, 0, 0], 3, 0, None),
        ([1, 2, 3], 2, 1, 2),
    ],
)
def test_an_answer_ends_when_its_last_ngram_has_come_so_often(tokens, size, threshold, length):
    sequence = make_sequence(
        repetition_ngram_size=size, repetition_ngram_threshold=threshold, prompt=(0,) * 9
    )
    expected = (len(tokens), None) if length is None else (length, "stop")
    assert run(sequence, tokens) == expected


def test_ngrams_are_counted_as_a_search_of_the_whole_output_counts_them():
    rng = random.Random(0)
    lengths = set()
    for _ in range(300):
        size, threshold = rng.randrange(1, 5), rng.randrange(1, 6)
        tokens = rng.choices(range(3), k=60)
        sequence = make_sequence(
            repetition_ngram_size=size, repetition_ngram_threshold=threshold, max_new_tokens=None
        )
        expected = (60, None)
        for end in range(size, 61):
            last = tokens[end - size : end]
            starts = range(end - size + 1)
            if sum(tokens[start : start + size] == last for start in starts) >= threshold:
                expected = (end, "stop")
                break
        assert run(sequence, tokens) == expected
        lengths.add(expected)
    assert len(lengths) > 20


def test_a_long_answer_is_not_searched_again_for_each_token():
    sequence = make_sequence(repetition_ngram_size=20, repetition_ngram_threshold=2)
    assert run(sequence, list(range(200_000))) == (200_000, None)


def test_a_repetition_ends_no_answer_before_min_new_tokens():
    options = {"repetition_ngram_size": 2, "repetition_ngram_threshold": 2}
    assert run(make_sequence(**options), [5] * 9) == (3, "stop")
    assert run(make_sequence(**options, min_new_tokens=6), [5] * 9) == (6, "stop")


def test_an_answer_must_go_on_until_min_new_tokens():
    sequence = make_sequence(min_new_tokens=2)
    seen = []
    for _ in range(4):
        seen.append(sequence.must_go_on)
        sequence.append(5)
    assert seen == [True, True, False, False]
    assert not make_sequence().must_go_on


def test_tokens_are_banned_outright_or_after_others_of_the_output():
    sequence = make_sequence(
        prompt=(1, 6),
        bad_token_ids=[8, 4],
        banned=((7,), (8,), (6, 1), (6, 6, 2), (5, 6, 3), (6, 5), (9, 6, 6, 4)),
    )
    assert sequence.banned_token_ids == (8, 4, 7)
    # The 6 of the prompt begins no banned sequence: only the output counts.
    assert sequence.banned_next_ids() == ()
    after: dict[int, tuple[int, ...]] = {}
    for token in (6, 6, 5, 6):
        sequence.append(token)
        after[sequence.num_output_tokens] = sequence.banned_next_ids()
    assert after == {1: (1, 5), 2: (1, 2, 5), 3: (), 4: (1, 3, 5)}


def test_a_sequence_that_fails_says_why():
    sequence = make_sequence()
    assert sequence.error is None
    sequence.fail("no token can be chosen")
    assert (sequence.finish_reason, sequence.error) == ("error", "no token can be chosen")
    assert sequence.output_token_ids == []
