"""What an evaluation counts, and what it says about what it does not."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.job.jobs import records
from vlmflow.cli import main
from vlmflow.evaluation.evaluate import EvaluationOptions
from vlmflow.evaluation.request import EvaluationRequest
from vlmflow.evaluation.results import ResultsOpener
from vlmflow.job.errors import ManifestError, SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.progress import LineDisplay
from vlmflow.job.store import StoreOpener

LINES = [
    *({**r, "metadata": {"half": "low" if n < 4 else "high"}} for n, r in enumerate(records(8))),
    {"id": "failed", "prompt": "x", "images": ["gone.png"], "expected": "y"},
    {"id": "unknown", "prompt": "y"},
    {"id": "failed too", "prompt": "z", "images": ["gone.png"]},
    "no JSON",
]
# Of ten records with an answer expected, or that are no record, five are right.
ANSWERS = {f"r{n}": str(n) if n < 5 else f"not {n}" for n in range(8)}


def evaluate(output: Path | str, scorers: str = "exact_match", **options: Any) -> dict[str, Any]:
    manifest = options.pop("manifest", None)
    request = EvaluationRequest(
        scorers=scorers, options=EvaluationOptions(**options), manifest=manifest
    )
    opener = StoreOpener()
    with ResultsOpener(opener) as results:
        found = results.open(str(output))
        return request.carry_out(
            found, opener, output=found.store, display=LineDisplay(), stop=StopSignal()
        ).content


@pytest.fixture
def output(finished) -> Path:
    return finished(LINES, ANSWERS)


def test_failed_records_count_as_wrong_and_unknown_ones_not_at_all(output):
    content = evaluate(output)
    score = content["scores"]["exact_match"]
    assert content["counts"] == {"records": 12, "failed": 3}
    assert content["failed_count_as"] == "wrong"
    assert (score["scored"], score["left_out"]) == (10, 2)
    assert score["mean"] == 0.5
    assert 0.1 <= score["low"] < 0.5 < score["high"] <= 0.9


def test_failed_records_may_be_left_out(output):
    content = evaluate(output, failed="leave-out")
    score = content["scores"]["exact_match"]
    assert (score["scored"], score["left_out"], score["mean"]) == (8, 4, 0.625)
    assert content["failed_count_as"] == "leave-out"


def test_scorer_that_needs_nothing_expected_scores_every_record(output):
    score = evaluate(output, "json_valid")["scores"]["json_valid"]
    assert (score["scored"], score["left_out"]) == (12, 0)


def test_slices_are_by_the_values_of_a_field(output):
    [low, high, missing] = sorted(
        evaluate(output, slice_fields=("metadata.half",))["slices"]["metadata.half"],
        key=lambda item: item["scores"]["exact_match"]["mean"],
        reverse=True,
    )
    assert (low["value"], low["records"], low["scores"]["exact_match"]["mean"]) == ("low", 4, 1)
    assert (high["value"], high["scores"]["exact_match"]["mean"]) == ("high", 0.25)
    assert (missing["value"], missing["records"]) == ("(missing)", 4)


def test_every_record_is_in_the_table_with_its_prompt(output):
    evaluate(output, "exact_match,anls", slice_fields=("metadata.half",))
    rows = pq.read_table(output / "evaluation.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(8)] + [
        "failed", "unknown", "failed too", None,
    ]  # fmt: skip
    assert rows[5] == {
        "id": "r5", "ordinal": 5, "image": None, "prompt": "question 5", "answer": "not 5",
        "expected": "5", "error_class": None, "score.exact_match": 0.0, "score.anls": 0.0,
        "slice.metadata.half": "high",
    }  # fmt: skip
    assert rows[8]["image"] == "gone.png" and rows[8]["answer"] is None
    assert rows[8]["score.exact_match"] == 0 and rows[9]["score.exact_match"] is None
    content = json.loads((output / "evaluation.json").read_text())
    assert [row["id"] for row in content["rows"]][:2] == ["r0", "r1"]
    assert content["rows"][0]["scores"] == {"exact_match": 1.0, "anls": 1.0}


def test_rows_for_people_are_half_right_half_wrong_and_always_the_same(finished):
    output = finished(records(60), {f"r{n}": str(n) for n in range(50)})
    first = evaluate(output, max_rows=12)["rows"]
    assert [row["scores"]["exact_match"] for row in first].count(1.0) == 6
    assert [row["ordinal"] for row in first] == sorted(row["ordinal"] for row in first)
    assert evaluate(output, max_rows=12)["rows"] == first
    more_right = evaluate(output, max_rows=30)["rows"]
    assert [row["scores"]["exact_match"] for row in more_right].count(0.0) == 10


def test_expected_answer_may_be_another_field_and_stand_in_the_manifest_alone(finished, tmp_path):
    lines = [{"id": "a", "prompt": "p", "metadata": {"gold": "x"}}, {"id": "b", "prompt": "q"}]
    output = finished(lines, {"a": "x", "b": "y"})
    with pytest.raises(SpecError, match="no record has a field 'expected'"):
        evaluate(output)
    assert evaluate(output, expected_field="metadata.gold")["scores"]["exact_match"]["scored"] == 1
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({**line, "label": "x"}) + "\n" for line in lines))
    score = evaluate(output, manifest=str(labelled), expected_field="label")["scores"]
    assert score["exact_match"]["mean"] == 0.5


def test_manifest_of_another_job_is_refused(output, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"id": "another", "prompt": "x"}) + "\n")
    with pytest.raises(ManifestError, match="its record 0 is 'another', theirs 'r0'"):
        evaluate(output, manifest=str(other))


def test_manifest_that_is_gone_costs_the_prompts_alone(output, tmp_path, capsys):
    (tmp_path / "m.jsonl").unlink()
    content = evaluate(output)
    assert content["scores"]["exact_match"]["mean"] == 0.5
    assert content["manifest"] is None
    assert "going on without prompts" in capsys.readouterr().err
    assert evaluate(output, manifest="none")["scores"]["exact_match"]["mean"] == 0.5


def picky(text: str) -> float:
    return 1 / (len(text) - 1)


def test_fault_of_a_scorer_costs_its_answer_and_is_told(output, capsys):
    score = evaluate(output, f"{__name__}:picky")["scores"]["picky"]
    assert (score["faults"], score["scored"]) == (5, 7)
    assert score["first_fault"] == "r0: ZeroDivisionError: division by zero"
    assert main(["evaluate", "--results", str(output), "--scorers", f"{__name__}:picky"]) == 0
    assert "picky could not score 5 answers; the first: r0: ZeroDivision" in capsys.readouterr().out


def test_command_prints_a_table_and_writes_beside_the_results(output, capsys):
    arguments = ["evaluate", "--results", str(output), "--by", "metadata.half"]
    assert main([*arguments, "--scorers", "exact_match,token_f1"]) == 0
    out = capsys.readouterr().out
    assert "12 records, 3 failed: they count as wrong" in out
    assert "exact_match  0.5000" in out
    assert "exact_match left 2 records out" in out
    assert (output / "evaluation.json").is_file() and (output / "evaluation.parquet").is_file()


def test_command_prints_json_and_writes_elsewhere(output, tmp_path, capsys):
    arguments = ["evaluate", "--results", str(output / "results/00000.jsonl"), "--json"]
    assert main([*arguments, "--output", str(tmp_path / "there")]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["scores"]["exact_match"]["mean"] == 0.625
    assert json.loads((tmp_path / "there/evaluation.json").read_text()) == content
    assert not (output / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scorers", "exakt"], "there is no scorer 'exakt'"),
        (["--judge-model", "nowhere", "--scorers", "judge"], "'nowhere' is not a checkpoint"),
        (["--track"], "made without MLflow"),
    ],
)
def test_wrong_option_is_a_sentence_and_exit_code_2(output, capsys, arguments, reason):
    assert main(["evaluate", "--results", str(output), *arguments]) == 2
    assert reason in capsys.readouterr().err
