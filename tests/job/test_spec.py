"""One contract for all faces: the same words give the same bytes, wrong ones a clear sentence."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vlmflow.job.errors import SpecError
from vlmflow.job.spec import JobSpec
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig

LEAST: dict[str, Any] = {"manifest": "s3://bucket/in/m.jsonl", "model": "/model", "output": "/out"}


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("s3://bucket/in/shapes.jsonl", "shapes"),
        ("shapes.tar.gz", "shapes"),
        ("/in/my shapes (1).jsonl", "my-shapes-1"),
        ("/in/folder/", "folder"),
        ("s3://bucket/_x.jsonl", "x"),
        ("s3://bucket/.jsonl", "job"),
        ("\u65e5\u672c.jsonl", "job"),
        (f"{'x' * 200}.jsonl", "x" * 128),
    ],
)
def test_job_without_a_name_takes_its_manifests(manifest: str, name: str) -> None:
    assert JobSpec.parse(LEAST | {"manifest": manifest}).name == name


def test_name_that_is_given_is_kept() -> None:
    assert JobSpec.parse(LEAST | {"name": "Run-1.a_b"}).name == "Run-1.a_b"


@pytest.mark.parametrize("name", ["../up", "..", "a/b", ".hidden", "-x", "a b", "\u00fc", "a\n"])
def test_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="name must be letters"):
        JobSpec.parse(LEAST | {"name": name})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"manifest": None}, "manifest: "),
        (
            {"max_new_tokens": 5},
            "max_new_tokens: no such field, did you mean generation.max_",
        ),
        ({"limits": {"retries": 5}}, "limits.retries: no such field, there are max_failure_rate, "),
        ({"tracking": {"url": "x"}}, "tracking.url: no such field, did you mean tracking.uri?"),
        ({"generation": {"max_tokens": 5}}, "generation.max_tokens: no such field, did you mean "),
        ({"engine": {"batch": 5}}, "engine.batch: no such field, there are "),
        ({"limit": 0}, "limit: "),
        ({"limits": {"max_failure_rate": 1.1}}, "limits.max_failure_rate: "),
        ({"limits": {"max_failure_rate": float("nan")}}, "limits.max_failure_rate: "),
        ({"limits": {"grace_seconds": float("inf")}}, "limits.grace_seconds: "),
        ({"limits": {"engine_silence_seconds": float("inf")}}, "limits.engine_silence_seconds: "),
        ({"generation": {"temperature": 3}}, "temperature must be in"),
        ({"generation": {"temperature": float("nan")}}, "temperature"),
        ({"engine": {"dtype": "int4"}}, "dtype must be one of"),
        ({"schema_version": 2}, "schema_version: "),
        (
            {"media": {"allow_s3": ["s3://b"]}},
            "media.allow_s3: no such field, did you mean media.allowed",
        ),
        ({"media": {"allowed_s3": ["b/in"]}}, "write s3://bucket or s3://bucket/prefix"),
        ({"media": {"allowed_s3": ["s3://"]}}, "names no bucket"),
        ({"media": {"allowed_media_domains": ["h.example"]}}, "set allow_http too"),
        ({"media": {"cache_bytes": -1}}, "media.cache_bytes: "),
    ],
)
def test_wrong_word_is_named_with_what_is_allowed(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(LEAST | values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_failure_rate", [0, 1], [-0.01, 1.01]),
        ("max_image_bytes", [1], [0]),
        ("num_fetchers", [1, 256], [0, 257]),
        ("commit_seconds", [0.01, 30], [0, 30.1]),
        ("commit_records", [1, 1000], [0, 1001]),
        ("grace_seconds", [0], [-1]),
        ("engine_silence_seconds", [0.01], [0]),
    ],
)
def test_limit_is_taken_up_to_its_bounds(
    name: str, allowed: list[float], refused: list[float]
) -> None:
    for value in allowed:
        spec = JobSpec.parse(LEAST | {"limits": {name: value}})
        assert getattr(spec.limits, name) == value
    for value in refused:
        with pytest.raises(SpecError, match=f"limits.{name}: "):
            JobSpec.parse(LEAST | {"limits": {name: value}})


@pytest.mark.parametrize("price", [-1, float("nan"), float("inf"), "much"])
def test_price_is_a_number_that_is_not_negative(price: Any) -> None:
    assert JobSpec.parse(LEAST | {"price_per_hour": 2.5}).price_per_hour == 2.5
    with pytest.raises(SpecError, match="price_per_hour: "):
        JobSpec.parse(LEAST | {"price_per_hour": price})


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse({"model": 5, "limit": -1, "limits": {"retries": 5}})
    for place in ("manifest: ", "model: ", "output: ", "limit: ", "limits.retries: "):
        assert place in str(caught.value)


def test_the_same_spec_gives_the_same_bytes_whoever_made_it() -> None:
    values = {"generation": {"temperature": 1, "top_p": 1, "stop_token_ids": [3]}, "seed": 7}
    by_words = JobSpec.parse(LEAST | values)
    by_words_in_another_order = JobSpec.parse(dict(reversed((LEAST | values).items())))
    generation = GenerationConfig(temperature=1, top_p=1, stop_token_ids=(3,))
    by_objects = JobSpec(**LEAST, generation=generation, engine=PytorchEngineConfig(), seed=7)
    by_its_json = JobSpec.parse(json.loads(by_words.canonical_json()))
    specs = [by_words, by_words_in_another_order, by_objects, by_its_json]
    assert len({spec.canonical_json() for spec in specs}) == 1


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"manifest": "s3://b\u00fccket/\u65e5\U0001f600.jsonl"},
        {"generation": {"stop_token_ids": [1, 2], "random_seed": 2**63 - 1}},
        {"media": {"allowed_s3": ["s3://b/in"], "allow_http": True}},
        {"media": {"allow_http": True, "allowed_media_domains": ["h.example"]}},
    ],
)
def test_canonical_json_is_read_back_as_the_same_spec(values: dict[str, Any]) -> None:
    spec = JobSpec.parse(LEAST | values)
    text = spec.canonical_json()
    assert JobSpec.parse(json.loads(text)) == spec
    # Sorted, without blanks, letters as they are: any language can make these bytes.
    canonical = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}
    assert text == json.dumps(json.loads(text), **canonical)


def test_spec_cannot_be_changed() -> None:
    spec = JobSpec.parse(LEAST)
    with pytest.raises(ValidationError):
        spec.seed = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        spec.limits.num_fetchers = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "value"),
    [("n", 2), ("logprobs", 5), ("output_logits", "all"), ("return_ppl", True)],
)
def test_option_whose_outcome_no_result_holds_is_refused(option: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{option} is not for jobs"):
        JobSpec.parse(LEAST | {"generation": {option: value}})
