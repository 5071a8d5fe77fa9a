"""Two runs record by record: what is paired, what is not, and what the gate makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.conftest import lay_answers
from tests.job.jobs import records
from vlmflow.cli import main

LINES = [{**r, "metadata": {"half": "ab"[n % 2]}} for n, r in enumerate(records(20))]
# A is right on 0..9; B on 4..15: 6 wins, 4 losses, 10 ties.
A = {f"r{n}": str(n) if n < 10 else "-" for n in range(20)}
B = {f"r{n}": str(n) if 4 <= n < 16 else "-" for n in range(20)}


@pytest.fixture
def runs(finished) -> tuple[str, str]:
    first = finished(LINES, A, name="a", price_per_hour=2.0)
    second = finished(LINES, B, name="b", price_per_hour=2.0)
    return str(first), str(second)


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["compare", "--json", *arguments]) in (0, 3)
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_wins_losses_ties_and_the_means_of_the_pairs(runs, capsys):
    content = compare(capsys, *runs)
    score = content["scores"]["exact_match"]
    assert (score["wins"], score["losses"], score["ties"], score["pairs"]) == (6, 4, 10, 20)
    assert (score["mean_a"], score["mean_b"], score["difference"]) == (0.5, 0.6, 0.1)
    assert score["low"] < 0.1 < score["high"]
    assert score["p_value"] == pytest.approx(0.754, abs=0.001)  # 10 unequal pairs, 6 to 4
    assert content["records"]["in_both"] == 20 and content["records"]["changed"] == 10
    assert content["notes"] == []


def test_runs_exchanged_exchange_wins_and_losses(runs, capsys):
    score = compare(capsys, *reversed(runs))["scores"]["exact_match"]
    assert (score["wins"], score["losses"], score["difference"]) == (4, 6, -0.1)


def test_slices_have_scores_of_their_own(runs, capsys):
    slices = compare(capsys, *runs, "--by", "metadata.half")["slices"]["metadata.half"]
    assert {s["value"]: s["records"] for s in slices} == {"a": 10, "b": 10}
    even = next(s for s in slices if s["value"] == "a")["scores"]["exact_match"]
    assert (even["wins"], even["losses"], even["ties"]) == (3, 2, 5)


def test_changed_answers_come_with_both_texts_losses_first(runs, capsys):
    rows = compare(capsys, *runs)["rows"]
    assert [row["outcome"] for row in rows] == ["loss"] * 4 + ["win"] * 6
    assert [row["id"] for row in rows[:4]] == ["r0", "r1", "r2", "r3"]
    assert rows[0] == {
        "id": "r0", "outcome": "loss", "image": None, "prompt": "question 0", "expected": "0",
        "a": "0", "b": "-", "error_a": None, "error_b": None,
        "scores_a": {"exact_match": 1.0}, "scores_b": {"exact_match": 0.0},
    }  # fmt: skip


def test_speed_and_cost_stand_side_by_side(runs, capsys):
    for run, rate in zip(runs, (100.0, 80.0), strict=True):
        report = json.loads(Path(run, "report.json").read_text())
        report["throughput"]["images_per_second"] = rate
        report["cost"]["per_1000_records"] = 1 / rate
        Path(run, "report.json").write_text(json.dumps(report))
    speed = compare(capsys, *runs)["performance"]
    assert speed["images_per_second"] == {"a": 100.0, "b": 80.0, "ratio": 0.8}
    assert speed["cost_per_1000_records"]["ratio"] == pytest.approx(1.25)
    assert speed["error_rate"] == {"a": 0.0, "b": 0.0, "ratio": None}


def test_record_of_one_run_only_counts_in_no_score_and_is_named(finished, capsys):
    first = finished(LINES[:15], A, name="a")
    second = finished(LINES[5:], B, name="b", manifest="n")
    content = compare(capsys, str(first), str(second))
    assert content["records"]["in_both"] == content["scores"]["exact_match"]["pairs"] == 10
    assert content["records"]["only_in_a"] == {"count": 5, "examples": [f"r{n}" for n in range(5)]}
    assert content["records"]["only_in_b"]["examples"] == [f"r{n}" for n in range(15, 20)]
    notes = " ".join(content["notes"])
    assert "different manifests" in notes
    assert "5 records are in A only" in notes and "5 records are in B only" in notes


def test_id_that_comes_twice_counts_once_and_is_told(runs, capsys):
    file = Path(runs[1], "results/00000.jsonl")
    line = json.loads(file.read_text().splitlines()[0])
    with file.open("a") as out:
        out.write(json.dumps({**line, "ordinal": 99, "text": "0"}) + "\n")
    content = compare(capsys, *runs)
    assert content["b"]["duplicates"] == 1
    assert content["scores"]["exact_match"]["losses"] == 4, "the first one counts"
    assert "1 records of B have an id that came before; the first counts." in content["notes"]


def test_record_that_failed_in_one_run_lost_there(finished, capsys, tmp_path):
    lines = [
        *LINES,
        {"id": "x", "prompt": "p", "images": ["x.png"], "expected": "x"},
        "no JSON",
        "nor this",
    ]
    first = finished(lines, A, name="a")
    (tmp_path / "x.png").write_bytes(b"something that the fake engine takes")
    second = finished(lines, B | {"x": "x"}, name="b")
    content = compare(capsys, str(first), str(second))
    assert content["records"]["in_both"] == 23, "a line that is no record pairs with itself"
    assert content["scores"]["exact_match"]["wins"] == 7
    [row] = [row for row in content["rows"] if row["id"] == "x"]
    assert (row["a"], row["error_a"], row["b"]) == (None, "image_not_found", "x")
    left_out = compare(capsys, str(first), str(second), "--failed", "leave-out")
    assert left_out["scores"]["exact_match"]["pairs"] == 20


def test_runs_without_a_record_in_common_have_no_scores(finished, capsys):
    first = finished(LINES[:5], A, name="a")
    second = finished(LINES[5:], B, name="b", manifest="n")
    content = compare(capsys, str(first), str(second))
    assert content["scores"] == {"exact_match": None}
    assert "The runs have no record in common." in content["notes"]
    assert main(["compare", str(first), str(second), "--gate", "accuracy > 0"]) == 2
    assert "accuracy of run B is not known" in capsys.readouterr().err


def test_scorers_are_those_the_newer_run_was_evaluated_with(runs, capsys):
    report = json.loads(Path(runs[1], "report.json").read_text())
    report["job"]["spec"]["evaluation"]["scorers"] = "anls(threshold=0.4),token_f1"
    Path(runs[1], "report.json").write_text(json.dumps(report))
    assert list(compare(capsys, *runs)["scores"]) == ["anls", "token_f1"]
    assert list(compare(capsys, *runs, "--scorers", "chrf")["scores"]) == ["chrf"]


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("accuracy >= -0.01", 0),
        ("exact_match >= +0.1 and error_rate <= 0", 0),
        ("accuracy >= +0.11", 3),
        ("accuracy >= 1.3x or accuracy > 0.7", 3),
        ("accuracy >= ", 2),
        ("f1 >= 1", 2),
    ],
)
def test_exit_code_is_that_of_the_gate(runs, gate, code, capsys):
    assert main(["compare", *runs, "--gate", gate]) == code
    assert main(["compare", *runs, "--gate", gate, "--soft-gate"]) == code % 3
    out, err = capsys.readouterr()
    assert ("passed" in out) == (code in (0, 3)) and ("gate" in err) == (code == 2)
    assert ("not passed" in out) == (code == 3)


def test_table_on_the_terminal_says_all_that_matters(runs, capsys):
    assert main(["compare", *runs, "--by", "metadata.half"]) == 0
    out = capsys.readouterr().out
    assert "20 records in both, 10 answers changed" in out
    assert "exact_match  0.5000  0.6000  +0.1000" in out
    assert "metadata.half" in out and "records_per_second" in out and "cost_total" in out


def test_marks_of_a_judge_are_those_that_were_stored(runs, capsys):
    assert main(["compare", *runs, "--scorers", "judge"]) == 2
    assert "let its answers be judged first" in capsys.readouterr().err
    for run in runs:  # a stand-in for a judge that called its column so
        main(["evaluate", "--results", run, "--scorers", "judge=exact_match"])
        lay_answers(Path(run), dict.fromkeys(A, "changed since"))
    capsys.readouterr()
    score = compare(capsys, *runs, "--scorers", "judge")["scores"]["judge"]
    assert (score["wins"], score["losses"]) == (6, 4)
