"""The report's numbers are those of the committed lines, in whatever order they come."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.job.attempts import attempt
from vlmflow.job.report import MAX_EXAMPLES, Tally, make_report, matches, percentiles


def success(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "ordinal": number,
        "text": "cat",
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 4},
        "images": [{"uri": "a.png"}, {"uri": "b.png"}],
        "seconds": float(number),
    } | more


def failure(number: int, name: str = "image_corrupt") -> dict[str, Any]:
    error = {"stage": "decode", "class": name, "message": f"broken {number}"}
    return {"id": f"r{number}", "ordinal": number, "line": number + 1, "error": error}


def report_of(tally: Tally, attempts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return make_report(
        tally,
        job={"name": "job"},
        manifest={"uri": "m.jsonl"},
        attempts=attempts or [attempt(0, 4)],
        store={"uri": "/out"},
        results={"results": "/out/results/"},
        mlflow=None,
    )


def test_report_counts_what_the_lines_say() -> None:
    tally = Tally()
    for number in range(4):
        tally.add(success(number), is_skipped=False)
    tally.add(failure(4), is_skipped=False)
    tally.add(failure(5, "duplicate_id"), is_skipped=True)
    report = report_of(tally)
    assert report["counts"] == {
        "records": 6,
        "succeeded": 4,
        "failed": 1,
        "skipped": 1,
        "deduplicated": 0,
    }
    assert report["tokens"] == {"prompt": 40, "cached": 16, "output": 12}
    assert report["images"] == 8
    assert report["failures"] == {
        "duplicate_id": {
            "count": 1,
            "stages": {"decode": 1},
            "examples": [
                {"id": "r5", "ordinal": 5, "line": 6, "stage": "decode", "message": "broken 5"}
            ],
        },
        "image_corrupt": {
            "count": 1,
            "stages": {"decode": 1},
            "examples": [
                {"id": "r4", "ordinal": 4, "line": 5, "stage": "decode", "message": "broken 4"}
            ],
        },
    }
    latency = {"p50": 2.0, "p90": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert report["latency_seconds"] == latency
    json.dumps(report, allow_nan=False)


def test_deduplicated_record_counts_as_a_success_without_tokens_or_latency() -> None:
    tally = Tally()
    tally.add(success(1), is_skipped=False)
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}
    duplicate = success(2, deduplicated_of="r1", usage=usage, seconds=0.0, expected="cat")
    tally.add(duplicate, is_skipped=False)
    report = report_of(tally)
    assert report["counts"] == {
        "records": 2,
        "succeeded": 2,
        "failed": 0,
        "skipped": 0,
        "deduplicated": 1,
    }
    assert report["tokens"] == {"prompt": 10, "cached": 4, "output": 3}
    assert set(report["latency_seconds"].values()) == {1.0}
    assert report["accuracy"]["matched"] == 1


@given(
    kinds=st.lists(st.sampled_from(["success", "failed", "skipped"]), max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_counts_reconcile_in_any_order(kinds: list[str], order: Any) -> None:
    lines = [
        (success(n) if kind == "success" else failure(n), kind == "skipped")
        for n, kind in enumerate(kinds)
    ]
    order.shuffle(lines)
    tally = Tally()
    for line, is_skipped in lines:
        tally.add(line, is_skipped=is_skipped)
    counts = report_of(tally)["counts"]
    assert counts["records"] == len(kinds)
    assert counts["records"] == counts["succeeded"] + counts["failed"] + counts["skipped"]
    assert counts["succeeded"] == kinds.count("success")
    assert counts["skipped"] == kinds.count("skipped")


def test_each_class_of_failure_has_a_few_examples() -> None:
    tally = Tally()
    for number in range(10):
        tally.add(failure(number, "first" if number % 2 else "second"), is_skipped=False)
    failures = report_of(tally)["failures"]
    assert list(failures) == ["first", "second"]
    for item in failures.values():
        assert item["count"] == 5
        assert len(item["examples"]) == MAX_EXAMPLES


@pytest.mark.parametrize(
    ("text", "expected", "is_match"),
    [
        ("cat", "cat", True),
        (" cat\n", "cat", True),
        ("cat", "cat ", True),
        ("Cat", "cat", False),
        ("a cat", "cat", False),
        ("cat", ["dog", "cat"], True),
        ("cow", ["dog", "cat"], False),
        ("cat", [], False),
        ("5", 5, True),
        ("", "", True),
    ],
)
def test_answer_matches_when_it_is_the_expected_one_but_for_blanks(
    text: str, expected: Any, is_match: bool
) -> None:
    assert matches(text, expected) == is_match


def test_accuracy_is_over_succeeded_records_that_say_what_is_expected() -> None:
    tally = Tally()
    tally.add(success(0, expected="cat"), is_skipped=False)
    tally.add(success(1, expected="dog"), is_skipped=False)
    tally.add(success(2), is_skipped=False)
    tally.add(failure(3) | {"expected": "cat"}, is_skipped=False)
    assert report_of(tally)["accuracy"] == {"expected": 2, "matched": 1, "exact_match": 0.5}


def test_record_whose_expected_answer_is_null_expects_none() -> None:
    tally = Tally()
    tally.add(success(0, text="None", expected=None), is_skipped=False)
    assert report_of(tally)["accuracy"]["expected"] == 0


def test_job_without_expected_answers_has_no_accuracy() -> None:
    tally = Tally()
    tally.add(success(0), is_skipped=False)
    assert report_of(tally)["accuracy"]["exact_match"] is None


def test_throughput_is_over_the_working_time_of_all_attempts() -> None:
    tally = Tally()
    for number in range(6):
        tally.add(success(number), is_skipped=False)
    attempts = [attempt(0, 1), attempt(50, 0), attempt(100, 2)]
    assert report_of(tally, attempts)["throughput"] == {
        "seconds": 3.0,
        "records_per_second": 2.0,
        "images_per_second": 4.0,
        "prompt_tokens_per_second": 20.0,
        "output_tokens_per_second": 6.0,
    }


def test_throughput_of_workers_beside_one_another_is_over_the_time_on_the_clock() -> None:
    tally = Tally()
    for number in range(6):
        tally.add(success(number), is_skipped=False)
    report = report_of(tally, [attempt(0, 2), attempt(0, 2), attempt(1, 2)])
    assert report["throughput"]["seconds"] == 3.0
    assert report["throughput"]["records_per_second"] == 2.0
    assert report["time"]["device_seconds"] == 6.0


def test_class_of_failure_says_at_which_stages_it_came() -> None:
    tally = Tally()
    for stage in ("fetch", "decode", "fetch"):
        line = failure(0)
        line["error"]["stage"] = stage
        tally.add(line, is_skipped=False)
    assert report_of(tally)["failures"]["image_corrupt"]["stages"] == {"decode": 1, "fetch": 2}


def test_job_that_asked_nothing_has_no_throughput() -> None:
    tally = Tally()
    tally.add(failure(0), is_skipped=False)
    throughput = report_of(tally, [attempt(0, 0)])["throughput"]
    assert throughput.pop("seconds") == 0
    assert set(throughput.values()) == {None}


def test_engine_is_that_of_the_last_attempt_that_had_one() -> None:
    infos = [{"device": "cpu"}, {"device": "cuda"}, {}]
    attempts = [attempt(n, 1, engine_info=info) for n, info in enumerate(infos)]
    assert report_of(Tally(), attempts)["engine"] == {"device": "cuda"}
    assert report_of(Tally(), [attempt(0, 0)])["engine"] == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None,) * 5),
        ([3.0], (3.0,) * 5),
        ([2.0, 1.0], (2.0,) * 5),
        ([3.0, 1.0, 2.0], (2.0, 3.0, 3.0, 3.0, 3.0)),
        ([float(n) for n in range(100, -1, -1)], (50.0, 90.0, 95.0, 99.0, 100.0)),
    ],
)
def test_percentiles_are_values_that_were_measured(
    values: list[float], expected: tuple[float | None, ...]
) -> None:
    assert tuple(percentiles(values).values()) == expected


def test_report_tells_its_time_finely_enough_to_be_told_from_what_was_before() -> None:
    before = datetime.now(UTC)
    finished_at = datetime.fromisoformat(report_of(Tally())["finished_at"])
    assert finished_at >= before - timedelta(milliseconds=1)
