"""An operator's arguments make the JobSpec that the command line makes of its options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from tests.job_processes import JOB_PYTHON
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.airflow.operators.job_fields import JOB_FIELDS
from vlmflow.job.spec import JobSpec
from vlmflow.job.spec_arguments import SPEC_FIELDS

JOB = {"manifest": "s3://data/shapes.jsonl", "model": "m", "output": "s3://data/results"}
ARGUMENTS = {
    "name": "shapes-7",
    "dialect": "native",
    "model_names": ["qwen"],
    "duplicates": "suffix",
    "use_stored_options": False,
    "model_cache": "/models",
    "output_dialects": ["openai", "parquet"],
    "limit": 100,
    "num_shards": 4,
    "price_per_hour": 2.5,
    "seed": 7,
    "endpoint_url": "http://127.0.0.1:9000",
    "deduplicate": False,
    "generation": {"max_new_tokens": 64, "do_sample": True, "temperature": 0.5},
    "engine": {"dtype": "float32", "session_len": 2048, "enable_prefix_caching": False},
    "media": {"allowed_s3": ["s3://images"], "allow_http": True},
    "limits": {"max_failure_rate": 0.2, "commit_seconds": 5.0},
    "tracking": {"uri": "http://mlflow:5000", "experiment": "nightly", "num_traces": 3},
    "evaluation": {"scorers": "exact_match,anls", "slices": ["metadata.task"]},
}
OPTIONS = (
    "--name shapes-7 --dialect native --model-name qwen --duplicates suffix --no-stored-options "
    "--model-cache /models --output-dialect openai --output-dialect parquet --limit 100 "
    "--num-shards 4 --price-per-hour 2.5 --seed 7 --endpoint-url http://127.0.0.1:9000 --no-dedup "
    "--max-new-tokens 64 --do-sample --temperature 0.5 --dtype float32 --session-len 2048 "
    "--no-prefix-caching --allow-s3 s3://images --allow-http --max-failure-rate 0.2 "
    "--commit-seconds 5 --mlflow-uri http://mlflow:5000 --experiment nightly --mlflow-traces 3 "
    "--evaluate exact_match,anls --evaluate-by metadata.task"
)


def make(**more) -> VLMBatchInferenceOperator:
    return VLMBatchInferenceOperator(task_id="infer", **{**JOB, **more})


def spec_of_command_line(options: str, given: str = "") -> str:
    done = subprocess.run(
        [JOB_PYTHON, "-m", "vlmflow", "spec", *options.split()],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.rstrip("\n")


@pytest.mark.usefixtures("job_environment")
def test_the_bytes_are_those_of_the_command_line():
    base = "--manifest s3://data/shapes.jsonl --model m --output s3://data/results"
    assert make(**ARGUMENTS).job_spec().canonical_json() == spec_of_command_line(
        f"{base} {OPTIONS}"
    )
    plain = make().job_spec().canonical_json()
    assert plain == spec_of_command_line(base)
    # And what the process reads on its standard input is the same to it.
    assert spec_of_command_line("--spec -", plain) == plain


def test_every_field_of_a_spec_is_an_argument():
    assert set(SPEC_FIELDS) == set(JobSpec.model_fields) - {"schema_version"}
    assert set(JOB_FIELDS) <= set(VLMBatchInferenceOperator.template_fields)
    operator = make()
    for field in VLMBatchInferenceOperator.template_fields:
        assert hasattr(operator, field), field
    assert set(operator.template_fields_renderers) <= set(operator.template_fields)


def render(operator: VLMBatchInferenceOperator, **context) -> VLMBatchInferenceOperator:
    operator.render_template_fields({"params": {}, **context})
    return operator


def test_templates_are_rendered_in_all_of_a_job():
    operator = render(
        make(
            manifest="s3://data/{{ ds }}/m.jsonl",
            output="s3://data/{{ params.out }}",
            name="job-{{ ds_nodash }}",
            limit="{{ params.limit }}",
            num_shards="{{ params.shards }}",
            shard="{{ params.shard }}",
            generation={"max_new_tokens": "{{ params.tokens }}"},
            engine="{{ params.engine | tojson }}",
            limits={"max_failure_rate": "{{ params.rate }}"},
            media={"allowed_s3": ["s3://{{ params.bucket }}"]},
            env={"HF_HOME": "/cache/{{ ds }}"},
        ),
        ds="2026-01-02",
        ds_nodash="20260102",
        params={
            "out": "results",
            "limit": None,
            "shards": 8,
            "shard": "3/8",
            "tokens": 5,
            "engine": {"dtype": "float32"},
            "rate": 0.5,
            "bucket": "images",
        },
    )
    spec = operator.job_spec()
    assert (spec.manifest, spec.output) == ("s3://data/2026-01-02/m.jsonl", "s3://data/results")
    assert (spec.name, spec.limit, spec.num_shards) == ("job-20260102", None, 8)
    assert (spec.generation.max_new_tokens, spec.engine.dtype) == (5, "float32")
    assert (spec.limits.max_failure_rate, spec.media.allowed_s3) == (0.5, ("s3://images",))
    assert operator.env == {"HF_HOME": "/cache/2026-01-02"}
    assert operator.run_arguments(spec) == ["run", "--spec", "-", "--shard", "3/8"]


@pytest.mark.parametrize(
    ("shard", "arguments", "num_shards"),
    [
        (None, [], 4),
        (2, ["--shard", "2/4"], 4),
        ("2", ["--shard", "2/4"], 4),
        ("2/8", ["--shard", "2/8"], 8),
        ({"shard": "2/8"}, ["--shard", "2/8"], 8),
    ],
)
def test_a_shard_is_said_in_any_way(shard, arguments, num_shards):
    operator = make(shard=shard, num_shards=4)
    spec = operator.job_spec()
    assert operator.run_arguments(spec) == ["run", "--spec", "-", *arguments]
    assert spec.num_shards == num_shards


@pytest.mark.parametrize("shard", ["4/4", "x", "-1", "1/0", [1]])
def test_a_shard_that_is_none_fails_for_good(shard):
    with pytest.raises(AirflowFailException, match="must be a number from 0, or I/N"):
        make(shard=shard).job_spec()


@pytest.mark.parametrize(("shard", "num_shards"), [(4, 4), ("7", 4), (1, None)])
def test_a_shard_out_of_range_fails_before_a_process_is_started(shard, num_shards):
    with pytest.raises(AirflowFailException, match=r"shard \d is none of num_shards=.,.*; give"):
        make(shard=shard, num_shards=num_shards).job_spec()


@pytest.mark.parametrize("said", [True, "True"])
def test_failed_records_are_asked_again_when_that_is_said(said):
    operator = make(rerun_failed=said)
    assert operator.run_arguments(operator.job_spec())[-1] == "--rerun-failed"
    for unsaid in (False, "False", "None"):
        operator = make(rerun_failed=unsaid)
        assert operator.run_arguments(operator.job_spec()) == ["run", "--spec", "-"]


def test_nothing_that_a_template_made_was_not_given(context):
    operator = render(
        make(
            limits={"max_failure_rate": "{{ params.none }}", "min_records": 5},
            model_names="{{ params.model }}",
            vlmflow_conn_id="{{ params.none }}",
            aws_conn_id="{{ params.none }}",
            python="{{ params.none }}",
            env="{{ params.none }}",
        ),
        params={"none": None, "model": "qwen"},
    )
    plain = make(limits={"min_records": 5}, model_names=["qwen"]).job_spec()
    assert operator.job_spec() == plain
    assert (operator.job_hook.vlmflow_conn_id, operator.job_hook.aws_conn_id) == (None, None)
    assert operator.command([])[0] == sys.executable
    context["task_instance"] = context["ti"]
    assert "AIRFLOW_CTX_DAG_ID" in operator.process_environment(context)


def test_a_path_is_as_good_as_its_name():
    spec = make(manifest=Path("/data/m.jsonl"), model=Path("/models/m")).job_spec()
    assert (spec.manifest, spec.model) == ("/data/m.jsonl", "/models/m")
    assert make(python=Path("/opt/python")).command([])[0] == "/opt/python"


def test_a_password_in_a_tracking_uri_is_masked(monkeypatch):
    masked: list[str] = []
    monkeypatch.setattr("vlmflow.airflow.hooks.vlmflow.mask_secret", masked.append)
    make(tracking={"uri": "http://ada:pass%2Fword@mlflow:5000/at@home"}).job_spec()
    assert masked == ["pass%2Fword", "pass/word"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"manifest": None}, "manifest must be given"),
        ({"model": "{{ none }}", "output": ""}, "output must be given"),
        ({"engine": "{not json"}, "engine: '{not json' is not JSON"),
        ({"generation": {"max_tokens": 3}}, "max_tokens"),
        ({"generation": {"temprature": 1}}, "did you mean generation.temperature"),
        ({"num_shards": "four"}, "num_shards: .*, got 'four'"),
        ({"rerun_failed": "maybe"}, "rerun_failed must be True or False, got 'maybe'"),
        ({"name": "a/b"}, "name must be letters"),
    ],
)
def test_what_is_amiss_is_one_sentence_and_fails_for_good(more, message):
    with pytest.raises(AirflowFailException, match=message) as error:
        make(**more).job_spec()
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__  # one traceback in the log, not three


def test_a_connection_says_what_the_job_does_not(monkeypatch):
    extra = {"endpoint_url": "http://s3:9000", "mlflow_uri": "http://mlflow:5000"}
    connection = {"conn_type": "vlmflow", "extra": extra | {"python": "/opt/python"}}
    monkeypatch.setenv("AIRFLOW_CONN_VLM", json.dumps(connection))
    operator = make(vlmflow_conn_id="vlm", tracking={"experiment": "nightly"})
    spec = operator.job_spec()
    assert spec.endpoint_url == "http://s3:9000"
    assert (spec.tracking.uri, spec.tracking.experiment) == ("http://mlflow:5000", "nightly")
    assert operator.command([])[0] == "/opt/python"
    own = make(
        vlmflow_conn_id="vlm",
        endpoint_url="http://other:9000",
        tracking={"uri": "http://other:5000"},
        python="/usr/bin/python3",
    )
    assert own.job_spec().endpoint_url == "http://other:9000"
    assert own.job_spec().tracking.uri == "http://other:5000"
    assert own.command([])[0] == "/usr/bin/python3"


def test_default_arguments_of_a_dag_reach_the_job():
    defaults = {"aws_conn_id": "store", "python": "/opt/python", "limit": 3, "grace_seconds": 9.0}
    with DAG("d", schedule=None, default_args=defaults):
        operator = make()
    assert (operator.aws_conn_id, operator.python, operator.limit) == ("store", "/opt/python", 3)
    assert operator.grace_seconds == 9.0


def test_an_operator_is_mapped_over_shards():
    with DAG("d", schedule=None):
        mapped = VLMBatchInferenceOperator.partial(task_id="infer", **JOB).expand_kwargs(
            [{"shard": "0/2"}, {"shard": "1/2"}]
        )
        with pytest.raises(TypeError, match="shards"):
            VLMBatchInferenceOperator.partial(task_id="other", shards=3)
    assert mapped.task_id == "infer"


def test_the_environment_names_the_task_and_the_page_of_it(context, monkeypatch):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.example.org")
    context["ti"].map_index = 3
    context["task_instance"] = context["ti"]
    environment = make(env={"HF_HOME": "/cache", "N": 3}).process_environment(context)
    assert environment["AIRFLOW_CTX_DAG_ID"] == "dag"
    assert environment["AIRFLOW_CTX_MAP_INDEX"] == "3"
    assert environment["AIRFLOW__API__BASE_URL"] == "http://airflow.example.org"
    assert (environment["HF_HOME"], environment["N"]) == ("/cache", "3")
