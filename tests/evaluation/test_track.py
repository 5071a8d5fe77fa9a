"""Evaluations and comparisons in a real MLflow store."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from vlmflow.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ANSWERS = {"r0": "0", "r1": "1", "r2": "wrong"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """One database for all tests: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def output(finished, tmp_path, uri) -> Path:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    lines = [
        {"id": f"r{n}", "prompt": "p", "images": ["a.png"], "expected": str(n)} for n in range(3)
    ]
    return finished(lines, ANSWERS, tracking={"uri": uri})


def run_id(output: Path) -> str:
    return str(json.loads((output / "report.json").read_text())["mlflow"]["run_id"])


def read_artifact(client: MlflowClient, run: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run, name, str(folder))).read_text(encoding="utf-8")


def test_evaluation_goes_to_the_run_of_the_job(output, uri, tmp_path):
    arguments = ["evaluate", "--results", str(output), "--track", "--mlflow-uri", uri]
    assert main(arguments) == 0
    client, run = MlflowClient(uri), run_id(output)
    assert client.get_run(run).data.metrics["eval_exact_match"] == pytest.approx(2 / 3, abs=1e-6)
    assert client.get_run(run).info.status == "FINISHED"
    content = json.loads(read_artifact(client, run, "evaluation.json", tmp_path))
    assert content["scores"]["exact_match"]["scored"] == 3
    names = [file.path for file in client.list_artifacts(run)]
    [table] = [name for name in names if name.startswith("evaluation_table_")]
    rows = json.loads(read_artifact(client, run, table, tmp_path))
    assert rows["columns"].count("image") == 1
    image = rows["data"][0][rows["columns"].index("image")]
    assert image["type"] == "image"


def test_run_of_mlflow_leads_to_its_results(output, uri, capsys):
    name = f"runs:/{run_id(output)}"
    assert main(["evaluate", "--results", name, "--mlflow-uri", uri, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"] == name
    assert content["scores"]["exact_match"]["mean"] == pytest.approx(2 / 3, abs=1e-6)
    assert main(["evaluate", "--results", "0" * 32, "--mlflow-uri", uri]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_results_of_an_artifact_come_before_those_of_the_report(output, uri, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": f"r{n}", "ordinal": n, "text": str(n), "expected": str(n)} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    MlflowClient(uri).log_artifact(run_id(output), str(tmp_path / "results.parquet"))
    arguments = ["--results", run_id(output), "--mlflow-uri", uri, "--json"]
    assert main(["evaluate", *arguments, "--manifest", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["exact_match"]["mean"] == 1


def test_comparison_makes_a_run_of_its_own_or_goes_to_one_that_is_named(output, uri, tmp_path):
    arguments = ["compare", str(output), run_id(output), "--mlflow-uri", uri]
    assert main([*arguments, "--track", "--gate", "accuracy >= -0.5", "--experiment", "x"]) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("x")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["compare_exact_match_difference"] == 0
    assert run.data.metrics["compare_gate_passed"] == 1
    assert run.data.tags["compare.a"] == str(output)
    page = read_artifact(client, run.info.run_id, "comparison.html", tmp_path)
    assert page.startswith("<!DOCTYPE html>")
    assert main([*arguments, "--track", run_id(output)]) == 0
    names = [file.path for file in client.list_artifacts(run_id(output))]
    assert {"comparison.json", "comparison.html"} <= set(names)


def test_evaluation_as_a_phase_goes_to_the_run(tmp_path, uri, finished):
    from tests.job.jobs import make_spec, records, write_manifest
    from vlmflow.evaluation.phase import make_evaluator
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.progress import LineDisplay
    from vlmflow.job.run import JobRun

    manifest = write_manifest(tmp_path / "m.jsonl", records(3))
    spec = make_spec(
        tmp_path, manifest, tmp_path / "out",
        tracking={"uri": uri}, evaluation={"scorers": "exact_match,chrf"},
    )  # fmt: skip
    job = JobRun(spec, display=LineDisplay(), stop=StopSignal(), make_evaluator=make_evaluator)
    report = job.run()
    assert report is not None
    client, run = MlflowClient(uri), report["mlflow"]["run_id"]
    metrics = client.get_run(run).data.metrics
    assert metrics["eval_exact_match"] == 0 and metrics["eval_chrf"] >= 0
    names = {file.path for file in client.list_artifacts(run)}
    assert {"evaluation.json", "evaluation_table.json", "report.json"} <= names
