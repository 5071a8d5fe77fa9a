"""A record's line says all that is known of it, under names that no field of the user takes."""

import json

from vlmflow.job import outcomes
from vlmflow.job.dedup import Answer
from vlmflow.job.plan import SetAside
from vlmflow.job.record import RESULT_FIELDS, Failure, FetchedImage, Record

MINE = {"expected": "a cat", "metadata": {"split": "test"}, "my own": [1, None]}
RECORD = Record(3, 7, "r1", "x", ("a.png", "https://host/b.png?sig=SECRET"), {}, MINE)
RESPONSE = {
    "text": "A cat.\u2028",
    "finish_reason": "stop",
    "input_token_len": 20,
    "generate_token_len": 5,
    "cached_tokens": 16,
}
REASON = Failure("decode", "image_corrupt", "a.png is no image", retryable=False, attempts=2)


def test_answered_record_has_its_answer_its_counts_and_what_it_saw() -> None:
    images = [FetchedImage("a.png", b"1234", "ab" * 32)]
    outcome = outcomes.success(RECORD, images, RESPONSE, seconds=1.23456, attempts=2)
    assert (outcome.ordinal, outcome.num_images, outcome.is_success) == (3, 1, True)
    assert outcome.line == {
        "id": "r1",
        "ordinal": 3,
        "text": "A cat.\u2028",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "cached_tokens": 16},
        "images": [{"uri": "a.png", "sha256": "ab" * 32, "num_bytes": 4}],
        "seconds": 1.2346,
        "attempts": 2,
        **MINE,
    }


def test_record_that_asked_what_another_did_has_its_answer_and_no_costs() -> None:
    images = [FetchedImage("a.png", b"1234", "ab" * 32)]
    outcome = outcomes.duplicate(RECORD, images, Answer("r0", "A cat.", "stop"))
    assert (outcome.ordinal, outcome.num_images, outcome.is_success) == (3, 1, True)
    assert outcome.line == {
        "id": "r1",
        "ordinal": 3,
        "text": "A cat.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0},
        "images": [{"uri": "a.png", "sha256": "ab" * 32, "num_bytes": 4}],
        "seconds": 0.0,
        "attempts": 0,
        "deduplicated_of": "r0",
        **MINE,
    }


def test_failed_record_has_the_reason_and_the_users_fields() -> None:
    outcome = outcomes.failure(RECORD, REASON)
    assert (outcome.ordinal, outcome.failure, outcome.is_success) == (3, REASON, False)
    assert outcome.line == {
        "id": "r1",
        "ordinal": 3,
        "line": 7,
        "error": {
            "stage": "decode",
            "class": "image_corrupt",
            "message": "a.png is no image",
            "retryable": False,
            "attempts": 2,
        },
        "images": [{"uri": "a.png"}, {"uri": "https://host/b.png"}],
        **MINE,
    }


def test_record_set_aside_has_a_failure_line_too() -> None:
    reason = Failure("manifest", "duplicate_id", "line 7: id 'r1' stands in line 1 already")
    assert outcomes.set_aside_line(SetAside(3, 7, "r1", "skipped", reason)) == {
        "id": "r1",
        "ordinal": 3,
        "line": 7,
        "error": reason.as_dict(),
    }


def test_no_field_of_the_user_can_take_the_place_of_one_of_ours() -> None:
    bare = Record(3, 7, "r1", "x", (), {}, {})
    lines = [
        outcomes.success(bare, [], RESPONSE, seconds=1, attempts=1).line,
        outcomes.duplicate(bare, [], Answer("r0", "A cat.", "stop")).line,
        outcomes.failure(bare, REASON).line,
        outcomes.set_aside_line(SetAside(3, 7, "r1", "failed", REASON)),
    ]
    # The manifest reader keeps 'id' and 'images' for itself.
    assert {name for line in lines for name in line} == RESULT_FIELDS | {"id", "images"}


def test_line_of_a_record_is_json() -> None:
    outcome = outcomes.success(RECORD, [], RESPONSE, seconds=0.0, attempts=1)
    text = json.dumps(outcome.line, ensure_ascii=False, allow_nan=False)
    assert json.loads(text) == outcome.line
