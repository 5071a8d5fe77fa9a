"""docs/airflow_operators.md has every argument of every operator, and says what is a template."""

import inspect
import re

import pytest

from tests.job_processes import ROOT
from vlmflow import airflow as provider

_SHARED = {
    "ConnectedOperator": "Every operator and the sensor",
    "JobOperatorMixin": "A job",
    "CommandOperator": "A process beside the worker",
    "ScoringOperator": "VLMEvaluateOperator",
    "PodJobMixin": "VLMBatchInferencePodOperator",
}
# An operator's own `name`, `output` are Airflow's: the attributes have other names.
_ATTRIBUTES = {"name": {"job_name"}, "output": {"job_output", "eval_output"}}
OPERATORS = [name for name in provider.__all__ if re.match(r"VLM\w+(Operator|Sensor)$", name)]


def rows(section: str) -> dict[str, bool]:
    """The arguments of a section's table, and whether it calls them templates."""
    text = (ROOT / "docs" / "airflow_operators.md").read_text()
    _, _, rest = text.partition(f"\n## {section}\n")
    assert rest, f"there is no section {section!r}"
    found = {}
    for line in rest.partition("\n## ")[0].splitlines():
        if line.startswith("| `"):
            names, is_template = line.split("|")[1:3]
            found |= dict.fromkeys(re.findall(r"`(\w+)`", names), is_template.strip() == "t")
    return found


def documented(operator: type) -> dict[str, bool]:
    """All arguments of ours that the page gives an operator."""
    found: dict[str, bool] = {}
    for kind in operator.__mro__:
        if kind.__name__ in _SHARED:
            found |= rows(_SHARED[kind.__name__])
    return found | rows(operator.__name__)


def taken(operator: type) -> set[str]:
    """All arguments of ours that an operator takes."""
    return {
        name
        for kind in operator.__mro__
        if kind.__module__.startswith("vlmflow.") and "__init__" in vars(kind)
        for name, parameter in inspect.signature(vars(kind)["__init__"]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def test_there_are_operators():
    assert len(OPERATORS) == 8


@pytest.mark.parametrize("name", OPERATORS)
def test_every_argument_has_a_line(name):
    operator = getattr(provider, name)
    assert taken(operator) - documented(operator).keys() == set()


@pytest.mark.parametrize("name", OPERATORS)
def test_templates_are_called_templates(name):
    operator = getattr(provider, name)
    found = documented(operator)
    fields = set(operator.template_fields)
    for argument in taken(operator):
        is_template = bool(fields & (_ATTRIBUTES.get(argument, set()) | {argument}))
        assert found[argument] == is_template, argument
