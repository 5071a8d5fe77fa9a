"""docs/models.md: as the registry says, with a test file for every family."""

from pathlib import Path

from tools.models_page import PAGE, render
from vlmflow_engine.models.registry import FAMILIES, GENERIC

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render(), "run make docs"


def test_every_family_says_what_was_tested_and_has_a_test_file():
    for family in (*FAMILIES, GENERIC):
        assert family.name and family.form and family.checkpoints and family.tested
        module = type(family).__module__.rpartition(".")[2].replace("_5", "")  # two Qwens share one
        assert (ROOT / "tests/engine/models/families" / f"test_{module}.py").is_file()


def test_no_architecture_belongs_to_two_families():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))
