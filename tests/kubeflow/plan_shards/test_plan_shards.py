"""A plan: the same spec as everywhere, shards for a loop, and what must not be shown."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tests.job_processes import JOB_PYTHON
from tests.kubeflow.steps import make_job, run_step
from vlmflow.job.spec_arguments import make_spec
from vlmflow.kubeflow.job_parameters import job_parameters
from vlmflow.kubeflow.plan_shards.component import plan_shards

pytestmark = pytest.mark.usefixtures("job_environment")


def test_a_plan_says_what_later_steps_must_know(tmp_path):
    job = make_job(tmp_path, 3)
    step = run_step(plan_shards, tmp_path / "step", num_shards=4, **job)
    assert step.code == 0, step.err
    outputs = step.outputs
    assert outputs["shards"] == ["0/4", "1/4", "2/4"]  # the fourth has no records
    assert (outputs["shard_count"], outputs["records"]) == (4, 3)
    manifest = Path(job["manifest"]).read_bytes()
    assert outputs["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert outputs["job_name"] == "shapes"
    assert outputs["job_uri"] == f"{tmp_path}/out/shapes"
    assert (outputs["endpoint_url"], outputs["mlflow_uri"]) == ("", "")
    assert "| records | 3 |" in Path(outputs["summary"].uri).read_text()
    again = run_step(plan_shards, tmp_path / "again", num_shards=4, **job)
    assert again.outputs["spec"] == outputs["spec"]


def test_the_spec_has_the_bytes_of_the_command_line_and_of_the_operators(tmp_path):
    """Airflow's operators make theirs by `make_spec`, which tests/airflow compares too."""
    fields = make_job(tmp_path) | {
        "num_shards": 2,
        "name": "night",
        "generation": {"max_new_tokens": 64, "do_sample": True},
        "limits": {"max_failure_rate": 0.25},
        "media": {"allowed_s3": ["s3://images/2026"]},
        "tracking": {"uri": "http://mlflow:5000", "enabled": False},
    }
    del fields["options"]
    step = run_step(plan_shards, tmp_path / "step", **job_parameters(**fields))
    assert step.code == 0, step.err
    told = subprocess.run(
        [JOB_PYTHON, "-m", "vlmflow", "spec", "--spec", json.dumps(fields)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert step.outputs["spec"] == told.stdout.rstrip("\n") == make_spec(fields).canonical_json()
    assert step.outputs["mlflow_uri"] == "http://mlflow:5000"


def test_a_manifest_that_is_not_there_is_a_sentence_and_no_output(tmp_path):
    job = make_job(tmp_path) | {"manifest": str(tmp_path / "none.jsonl")}
    step = run_step(plan_shards, tmp_path / "step", **job)
    assert step.code == 2
    assert step.err.splitlines()[-1].startswith("vlmflow: ")
    assert "none.jsonl does not exist" in step.err
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("{", "cannot read --spec '{': it is not JSON"),
        ('{"tracking": {"uri": "http://me:hunter2@mlflow"}}', "tracking.uri 'http://mlflow' must"),
        ('{"generation": {"max_tokens": 5}}', "max_tokens"),
        ('{"prompt": "' + "x" * 50_000 + '"}', "a pipeline's parameter holds 49152"),
    ],
    ids=["no JSON", "a password", "no such field", "too long"],
)
def test_options_that_are_not_right_are_told_before_the_manifest_is_read(
    tmp_path, options, sentence
):
    job = make_job(tmp_path) | {"options": options, "manifest": "/nonexistent"}
    step = run_step(plan_shards, tmp_path / "step", **job)
    assert step.code == 2
    assert sentence in step.err and "hunter2" not in step.err + step.out
    assert len(step.err.splitlines()) == 1
