"""The page of a comparison shows what users wrote as text, and what comparison.json says."""

import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import lay_answers
from tests.job.hostile import HOSTILE, hostile_job
from tests.job.test_report_page import Page, check_is_inert
from vlmflow.cli import main


@pytest.fixture
def runs(tmp_path) -> tuple[str, str]:
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder, _ = hostile_job(tmp_path / name, price_per_hour=1.0)
        folders.append(folder)
    ids = [json.loads(line)["id"] for line in _lines(folders[0])]
    lay_answers(folders[0], {name: f"{text} A" for name, text in zip(ids, HOSTILE, strict=False)})
    lay_answers(folders[1], dict(zip(ids, HOSTILE, strict=False)))
    return str(folders[0]), str(folders[1])


def _lines(folder: Path) -> list[str]:
    return (folder / "results/00000.jsonl").read_text().splitlines()


def test_page_is_inert_whatever_users_wrote(runs, tmp_path):
    file = tmp_path / "page.html"
    gate = "accuracy >= 0.1 and error_rate < 2"
    arguments = ["compare", *runs, "--html", str(file), "--gate", gate, "--by", "expected"]
    assert main(arguments) == 0
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    check_is_inert(page)
    assert HOSTILE[0] in page.text and HOSTILE[6] in page.text
    assert "Gate passed" in page.text and gate in page.text
    assert text.count("data:image/") > 3, "changed answers have their pictures"


def test_page_says_what_the_comparison_says(runs, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["compare", *runs, "--html", str(file), "--json", "--gate", "accuracy >= 2"]) == 3
    content = json.loads(capsys.readouterr().out)
    page = Page(file.read_text(encoding="utf-8"))
    score = content["scores"]["exact_match"]
    assert score["wins"] > 0
    assert f"{score['wins']} wins, {score['losses']} losses, {score['ties']} ties" in page.text
    assert f"{100 * score['mean_b']:.1f} %" in page.text
    assert "Gate not passed" in page.text
    assert "of different manifests" in page.text or not content["notes"]
