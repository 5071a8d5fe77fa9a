"""The pages of docs/api: as the sources say, complete, and right."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vlmflow_engine
from tools import api_reference
from tools.api_source import Module
from vlmflow_engine import errors

FOLDER = Path(__file__).parents[2] / "docs" / "api"
CONFIGS = (
    "GenerationConfig",
    "PytorchEngineConfig",
    "TurbomindEngineConfig",
    "VisionConfig",
    "SpeculativeConfig",
    "ChatTemplateConfig",
    "Response",
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return api_reference.render_all()


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them; the second of a kind would get a number."""
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    found = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(found) == len(set(found)), found
    return set(found)


def rows(text: str, name: str) -> list[list[str]]:
    """The table rows of a class, as cells without code's marks."""
    section = text.split(f"## class {name}\n")[1].split("\n## ")[0]
    lines = re.findall(r"(?m)^\| `.*$", section)
    return [
        [cell.strip().strip("`").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        for line in lines
    ]


def test_the_committed_pages_are_what_the_sources_say(pages):
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    assert committed.keys() == pages.keys()
    for name, text in pages.items():
        assert committed[name] == text, f"docs/api/{name}: run `make docs`"


@pytest.mark.parametrize("module", api_reference.MODULES)
def test_every_public_name_is_in_the_index(module, pages):
    names = Module(module).public
    assert names == [n for n in getattr(importlib.import_module(module), "__all__", names)]
    for name in set(names) - {"__version__"}:
        assert f"[`{name}`](" in pages["README.md"], f"{module}.{name}"


def test_nothing_public_is_without_an_explanation():
    assert api_reference.undocumented() == []


def test_the_index_leads_to_headings_that_are_there(pages):
    links = re.findall(r"\]\((\w+\.md)#?([\w-]*)\)", pages["README.md"])
    assert len(links) == 21
    for page, anchor in links:
        assert not anchor or anchor in anchors(pages[page])


def test_the_fields_are_those_of_the_classes(pages):
    for name in CONFIGS:
        (page,) = (text for text in pages.values() if f"## class {name}\n" in text)
        shown = {row[0]: row[2] for row in rows(page, name) if len(row) == 4}
        fields = {f.name: f for f in dataclasses.fields(getattr(vlmflow_engine, name))}
        assert shown.keys() == fields.keys()
        for field, default in shown.items():
            value = fields[field].default
            if value is not dataclasses.MISSING:
                assert eval(default) == value, (name, field)
            elif fields[field].default_factory is dataclasses.MISSING:
                assert default == ""


def test_every_error_is_listed_with_what_it_says_of_a_request(pages):
    listed = dict(re.findall(r"(?m)^\| `(\w+Error)` \| (.*) \|$", pages["errors.md"]))
    classes = {
        name: item
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, errors.VlmflowError)
    }
    assert listed.keys() == classes.keys()
    for name, item in classes.items():
        if issubclass(item, errors.RequestError):
            values = (item.code, item.stage, item.error_class, item.retryable)
            assert [cell.strip("`") for cell in listed[name].split(" | ")][:4] == [
                str(value) for value in values
            ], name
        assert name in pages["errors.md"].split("```")[1], "in the tree"


def test_reading_the_sources_imports_none_of_them():
    code = (
        "import sys; from tools.api_reference import render_all; render_all(); "
        "assert not {'torch', 'numpy', 'vlmflow_engine'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1], timeout=60)


def test_a_stale_page_fails_the_check_and_is_written_anew(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "api"
    monkeypatch.setattr(api_reference, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["api_reference", "--check"])
    assert api_reference.main() == 1
    assert not folder.exists()
    monkeypatch.setattr(sys, "argv", ["api_reference"])
    assert api_reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["api_reference", "--check"])
    assert api_reference.main() == 0
    (folder / "engine.md").write_text("old")
    (folder / "gone.md").write_text("of a page that is no more")
    capsys.readouterr()
    assert api_reference.main() == 1
    told = capsys.readouterr().err
    assert "docs/api/engine.md" in told and "docs/api/gone.md" in told


def test_two_columns_become_a_table_and_indented_lines_code():
    docstring = "Do it.\n\n    do(it)\n\nname   what it\n       is\nother  a | b\n\nRaises <this>."
    assert api_reference._markdown(docstring) == (
        "Do it.\n\n```python\ndo(it)\n```\n\n| | |\n|---|---|\n| `name` | what it is |\n"
        "| `other` | a \\| b |\n\nRaises \\<this>.\n"
    )
