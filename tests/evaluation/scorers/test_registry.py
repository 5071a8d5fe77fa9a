"""From what a user writes to scorers."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from vlmflow.evaluation.answer import Answer, ImageReference
from vlmflow.evaluation.scorers import make_scorers, scorer_names
from vlmflow.job.errors import SpecError

ANSWER = Answer(
    "r1",
    0,
    "a red cube",
    {"expected": "red", "metadata": {"k": 1}},
    (ImageReference("s3://b/i.png", None),),
    prompt="What?",
)


def half(text: str, factor: float = 0.5) -> float:
    return len(text) * factor


def sees_all(text, expected, prompt, metadata, images, record_id):  # noqa: ANN001, ANN201
    return (text, expected, prompt, metadata, images, record_id) == (
        "a red cube", "red", "What?", {"k": 1}, ["s3://b/i.png"], "r1",
    )  # fmt: skip


def wants_more(text, colour):  # noqa: ANN001, ANN201
    return 1


class Length:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, text: str) -> bool:
        return len(text) <= self.limit


def test_scorers_have_the_order_names_and_options_they_are_written_with():
    scorers = make_scorers("exact_match, anls(threshold=0.3) ,near=anls(threshold=0.9)")
    assert [scorer.name for scorer in scorers] == ["exact_match", "anls", "near"]
    answer = Answer("r", 0, "abcd", {})
    assert [scorer.score(answer, "abXY") for scorer in scorers] == [0, 0, 0.5]


def test_every_built_in_scorer_can_be_made():
    names = [name for name in scorer_names()]
    assert [scorer.name for scorer in make_scorers(",".join(names))] == names
    assert len(names) == 13


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no scorer is named"),
        ("exact", "there is no scorer 'exact'; there are exact_match"),
        ("anls(", "is no scorer"),
        ("anls(0.5)", "'0.5' is no option"),
        ("anls(limit=1)", "limit"),
        ("anls,anls(threshold=0.1)", "two scorers are called 'anls'"),
        ("judge", "--judge-model"),
        ("no.such:thing", "cannot import 'no.such'"),
        (f"{__name__}:nothing", "has no 'nothing'"),
        (f"{__name__}:ANSWER", "not a function"),
        (f"{__name__}:wants_more", "wants 'colour'; a scorer is given text, expected"),
        ("mlflow:Nothing", "has no 'Nothing'"),
    ],
)
def test_what_is_amiss_is_one_sentence(text, reason):
    with pytest.raises(SpecError, match=reason.replace("(", r"\(")):
        make_scorers(text)


def test_function_of_a_module_is_given_what_it_names():
    all_of_it, halved, third = make_scorers(
        f"{__name__}:sees_all,{__name__}:half,t={__name__}:half(factor=0.3)"
    )
    assert all_of_it.name == "sees_all" and all_of_it.needs_expected
    assert all_of_it.score(ANSWER, "red") == 1
    assert (halved.score(ANSWER, None), halved.needs_expected) == (5, False)
    assert third.score(ANSWER, None) == pytest.approx(3)


def test_class_of_a_module_is_made_with_the_options():
    [scorer] = make_scorers(f"{__name__}:Length(limit=3)")
    assert scorer.score(ANSWER, None) == 0


def test_entry_point_of_another_distribution_is_found_by_its_name(monkeypatch):
    point = EntryPoint("their_own", f"{__name__}:half", "vlmflow.scorers")

    def entry_points(group: str, name: str | None = None) -> EntryPoints:
        assert group == "vlmflow.scorers"
        return EntryPoints([point] if name in (None, "their_own") else [])

    monkeypatch.setattr("vlmflow.evaluation.scorers.custom.entry_points", entry_points)
    [scorer] = make_scorers("their_own(factor=2)")
    assert (scorer.name, scorer.score(ANSWER, None)) == ("their_own", 20)
    assert "their_own" in scorer_names()


def test_scorer_of_mlflow_is_given_outputs_and_expectations():
    [scorer] = make_scorers('m=mlflow:RegexMatch(pattern="blue .*")')
    assert (scorer.name, scorer.score(ANSWER, None)) == ("m", 0)
    [scorer] = make_scorers('mlflow:RegexMatch(pattern=".*cube")')
    assert (scorer.name, scorer.score(ANSWER, None)) == ("RegexMatch", 1)
