"""A job's end as a step: its report as artifacts, or one sentence."""

from pathlib import Path

from tests.kubeflow.steps import as_inputs, make_job, run_step
from vlmflow.kubeflow.batch_inference.component import batch_inference
from vlmflow.kubeflow.merge_report.component import merge_report
from vlmflow.kubeflow.plan_shards.component import plan_shards


def test_a_finished_job_becomes_artifacts(tmp_path, job_environment):
    plan = run_step(plan_shards, tmp_path / "plan", num_shards=2, **make_job(tmp_path, 5))
    assert run_step(batch_inference, tmp_path / "0", shard="0/2", **as_inputs(plan)).code == 0
    early = run_step(merge_report, tmp_path / "early", **as_inputs(plan))
    assert early.code == 75 and "1 of 2 shards of" in early.err  # a retry may find it done
    assert run_step(batch_inference, tmp_path / "1", shard="1/2", **as_inputs(plan)).code == 0
    step = run_step(merge_report, tmp_path / "merge", **as_inputs(plan))
    assert step.code == 0, step.err
    outputs, job = step.outputs, f"{tmp_path}/out/shapes"
    assert (outputs["records"], outputs["succeeded"], outputs["failed"]) == (5, 5, 0)
    assert (outputs["job_uri"], outputs["results_uri"]) == (job, f"{job}/results/")
    assert outputs["report_uri"] == f"{job}/report.json"
    assert outputs["mlflow_run_id"] == ""
    assert outputs["results"].uri == outputs["results_uri"]
    assert outputs["results"].metadata["succeeded"] == 5
    assert outputs["metrics"].metadata["records"] == 5
    page = Path(outputs["report"].uri).read_bytes()
    assert page == Path(job, "report.html").read_bytes() and b"<html" in page
    assert Path(outputs["summary"].uri).read_text().startswith("# shapes\n")
