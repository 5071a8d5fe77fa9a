"""Gates: what they mean, and where one that is none is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.evaluation.gate import GateSyntaxError, Measured, judge_gate, parse_gate
from vlmflow.job.errors import SpecError

KNOWN = {
    "accuracy": Measured(0.90, 0.89),
    "images_per_second": Measured(100.0, 95.0),
    "error_rate": Measured(0.0, 0.02),
    "cost_total": Measured(None, 3.0),
}


def passes(text: str) -> bool:
    return judge_gate(parse_gate(text), text, KNOWN)["passed"]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("accuracy >= 0.89", True),
        ("accuracy >= 0.9", False),
        ("accuracy > 0.89", False),
        ("accuracy <= .89", True),
        ("accuracy < 0.89", False),
        ("accuracy >= -0.01", True),  # 0.89 - 0.90 is a little less in binary
        ("accuracy >= -0.009", False),
        ("accuracy > -0.01", False),
        ("accuracy >= +0.0", False),
        ("accuracy >= 0", True),
        ("images_per_second >= 0.95x", True),
        ("images_per_second >= 0.96X", False),
        ("images_per_second>=95", True),
        ("images_per_second >= 9.5e1", True),
        ("error_rate <= +0.02", True),
        ("error_rate < 2x", False),
        ("cost_total < 4", True),  # only B's is needed
        ("accuracy >= 1 or accuracy >= -1", True),
        ("accuracy >= -1 and accuracy >= 1", False),
        # and before or
        ("accuracy >= -1 or accuracy >= 1 and accuracy >= 1", True),
        ("(accuracy >= -1 or accuracy >= 1) and accuracy >= 1", False),
        ("((accuracy >= -1)) AND (images_per_second >= 1 Or error_rate > 1)", True),
    ],
)
def test_gate_holds_or_does_not(text, passed):
    assert passes(text) is passed


@pytest.mark.parametrize(
    ("text", "place", "wanted"),
    [
        ("", 1, "the name of a metric, not the end"),
        ("accuracy", 9, "one of >=, >, <=, <"),
        ("accuracy >=", 12, "a number"),
        ("accuracy >= and", 13, "a number"),
        ("accuracy => 1", 10, "which is no metric"),
        ("accuracy == 1", 10, "which is no metric"),
        ("accuracy >= 0.5 0.6", 17, "'and', 'or' or the end"),
        ("accuracy >= -0.95x", 13, "a ratio without a sign"),
        ("(accuracy >= 1", 15, r"'\)'"),
        ("accuracy >= 1)", 14, "'and', 'or' or the end"),
        ("accuracy >= 1 and", 18, "the name of a metric"),
        ("and >= 1", 1, "the name of a metric"),
        ("accuracy >= 1y", 13, "which is no metric"),
        ("__import__('os')", 12, "which is no metric"),
        ("__import__(os)", 11, "one of >="),
        ("accuracy >= 1; 2", 14, "which is no metric"),
        ("(" * 60 + "accuracy >= 1" + ")" * 60, 51, "no more than 50 brackets"),
    ],
)
def test_syntax_error_says_where_and_what(text, place, wanted):
    with pytest.raises(GateSyntaxError, match=rf"at character {place} .*{wanted}") as caught:
        parse_gate(text)
    assert caught.value.exit_code == 2


@given(st.text("ab_.0159+-x()<>= andor\n\"'", max_size=40))
def test_any_text_is_a_gate_or_a_syntax_error(text):
    try:
        parse_gate(text)
    except GateSyntaxError as error:
        assert "at character" in str(error)


def test_unknown_metric_names_those_there_are():
    with pytest.raises(SpecError, match="no metric 'f1'; there are accuracy, images_per_second"):
        passes("accuracy > 2 and f1 > 1")


def test_value_that_a_run_does_not_know_is_told():
    with pytest.raises(SpecError, match="cost_total of run A is not known"):
        passes("cost_total <= 1.1x")


def test_outcome_of_every_clause_is_told():
    text = "accuracy >= 1 or images_per_second >= 0.95x"
    judged = judge_gate(parse_gate(text), text, KNOWN)
    assert judged["passed"] is True
    assert [(c["clause"], c["value"], c["bound"], c["holds"]) for c in judged["clauses"]] == [
        ("accuracy >= 1", 0.89, 1.0, False),
        ("images_per_second >= 0.95x", 95.0, 95.0, True),
    ]
