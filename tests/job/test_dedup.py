"""What is asked alike is asked once, and nobody is forgotten over it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.job.dedup import Answer, Deduplicator, question_key
from vlmflow.job.record import FetchedImage

PROMPT = [{"role": "user", "content": "What is it?"}]
GENERATION = {"max_new_tokens": 5, "random_seed": None}


def images(*digests: str) -> list[FetchedImage]:
    return [FetchedImage(f"{n}.png", b"", digest) for n, digest in enumerate(digests)]


def key(
    prompt: Any = PROMPT, digests: tuple[str, ...] = ("1",), generation: Any = GENERATION
) -> bytes:
    return question_key(prompt, images(*digests), generation)


def test_names_of_images_and_the_order_of_fields_do_not_matter() -> None:
    renamed = [FetchedImage("other.png", b"", "1")]
    reordered = dict(reversed(GENERATION.items()))
    assert question_key(PROMPT, renamed, reordered) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": [{"role": "user", "content": "What is it ?"}]},
        {"prompt": [{"role": "system", "content": "What is it?"}]},
        {"digests": ("2",)},
        {"digests": ()},
        {"digests": ("1", "1")},
        {"generation": GENERATION | {"max_new_tokens": 6}},
        {"generation": GENERATION | {"random_seed": 0}},
        {"prompt": "\ud800"},
    ],
    ids=str,
)
def test_whatever_an_answer_depends_on_makes_another_question(other: dict[str, Any]) -> None:
    assert key(**other) != key()


def test_order_of_the_images_matters() -> None:
    assert key(digests=("1", "2")) != key(digests=("2", "1"))


def test_first_asks_and_the_others_wait_for_its_answer() -> None:
    dedup: Deduplicator[str] = Deduplicator()
    assert dedup.wait(b"1", "a") is None
    assert dedup.wait(b"1", "b") == dedup.wait(b"1", "c") == "a"
    assert dedup.wait(b"2", "d") is None
    assert dedup.num_waiting == 2
    assert dedup.find(b"1") is None
    answer = Answer("a", "cat", "stop")
    assert dedup.settle(b"1", answer) == ["b", "c"]
    assert (dedup.num_waiting, dedup.find(b"1"), dedup.find(b"2")) == (0, answer, None)


def test_question_without_an_answer_is_anybodys_again() -> None:
    dedup: Deduplicator[str] = Deduplicator()
    dedup.wait(b"1", "a")
    dedup.wait(b"1", "b")
    assert dedup.settle(b"1", None) == ["b"]
    assert dedup.find(b"1") is None
    assert dedup.wait(b"1", "c") is None


@given(
    steps=st.lists(st.tuples(st.sampled_from(["ask", "answer", "fail"]), st.integers(0, 4))),
    max_kept=st.integers(0, 3000),
)
def test_everybody_who_waits_comes_back_once_and_memory_is_bounded(
    steps: list[tuple[str, int]], max_kept: int
) -> None:
    dedup: Deduplicator[int] = Deduplicator(max_kept)
    waiting: dict[bytes, list[int]] = {}
    for number, (step, question) in enumerate(steps):
        name = b"%d" % question
        if step == "ask":
            if dedup.find(name) is None:
                leader = waiting[name][0] if name in waiting else None
                assert dedup.wait(name, number) == leader
                waiting.setdefault(name, []).append(number)
        elif name in waiting:
            answer = Answer(str(question), "x" * 100 * question, "stop")
            settled = dedup.settle(name, answer if step == "answer" else None)
            assert settled == waiting.pop(name)[1:]
        assert dedup.num_waiting == sum(len(group) - 1 for group in waiting.values())
        assert sum(500 + len(a.text) for a in dedup._answers.values()) <= max_kept


def test_answer_used_lately_is_kept_longest() -> None:
    dedup: Deduplicator[str] = Deduplicator(1200)  # two of 500 and a short text
    for name in (b"1", b"2"):
        dedup.wait(name, "x")
        dedup.settle(name, Answer("x", "t", "stop"))
    assert dedup.find(b"1")
    dedup.wait(b"3", "x")
    dedup.settle(b"3", Answer("x", "t", "stop"))
    assert dedup.find(b"1") and dedup.find(b"3")
    assert dedup.find(b"2") is None
