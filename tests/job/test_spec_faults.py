"""What is said of a spec that is not right: the field, the value, and what would be right."""

import re
from typing import Any

import pytest

from vlmflow.job.errors import SpecError
from vlmflow.job.spec import JobSpec

LEAST = {"manifest": "m.jsonl", "model": "m", "output": "o"}


def told(values: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(LEAST | values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ({"num_shards": "four"}, ", got 'four'"),
        ({"num_shards": 0}, "greater than or equal to 1, got 0"),
        ({"limits": {"max_failure_rate": None}}, "limits.max_failure_rate: .*, got None"),
        ({"generation": 5}, ", got 5"),
        ({"model_names": {"a": 1}}, "model_names: .*, got a dict"),
        ({"name": "a/b"}, "got 'a/b'"),
    ],
)
def test_the_value_is_told(values: dict[str, Any], ending: str) -> None:
    assert re.search(f"{ending}$", told(values))


def test_of_several_faults_each_is_told() -> None:
    sentences = told({"num_shards": 0, "seed": "x", "generation": {"temprature": 1}}).split("; ")
    assert [sentence.partition(":")[0] for sentence in sentences[:2]] == ["num_shards", "seed"]
    assert sentences[2:] == [
        "generation.temprature: no such field, did you mean generation.temperature?"
    ]


@pytest.mark.parametrize("place", ["tracking", "limits"])
def test_no_password_is_told(place: str) -> None:
    sentence = told({place: "http://ada:the-password@mlflow?token=the-password"})
    assert "the-password" not in sentence
    assert sentence.endswith("got 'http://mlflow'")


def test_a_long_value_is_cut() -> None:
    assert len(told({"seed": "x" * 9999})) < 300
