"""common.ai's @task.llm_batch on our engine."""

from configparser import ConfigParser
from importlib import import_module

import pytest
from airflow.providers.common.ai.batch.dispatch import (
    build_adapter_from_connection,
    get_adapter_class,
    register_adapter,
)
from airflow.providers.common.ai.batch.output_schema import build_output_spec
from airflow.providers.common.ai.batch.results import stream_results_to_jsonl
from airflow.providers.common.ai.exceptions import LLMBatchInputError, LLMBatchLimitExceededError
from airflow.sdk import Connection, ObjectStoragePath
from pydantic import BaseModel

from tests.airflow.jobs import make_job, wait_until
from tests.job_processes import JOB_PYTHON, ROOT
from vlmflow.airflow.adapters.llm_batch import VLMFlowBatchAdapter
from vlmflow.job.store import ObjectMissingError

pytestmark = pytest.mark.usefixtures("job_environment")

KEY, FINGERPRINT = "0123456789abcdef", "f" * 64
TEXT = build_output_spec(str)


@pytest.fixture
def adapter(tmp_path, monkeypatch) -> VLMFlowBatchAdapter:
    """The adapter as the registry makes it, of a connection."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # then nothing is tracked
    register_adapter(VLMFlowBatchAdapter)
    host = f"{tmp_path}/batches?python={JOB_PYTHON}"
    connection = Connection(conn_id="vlm", conn_type="vlmflow", host=host)
    adapter = build_adapter_from_connection("vlmflow", connection)
    assert isinstance(adapter, VLMFlowBatchAdapter)
    return adapter


def submit(adapter, tmp_path, requests, **more) -> str:
    model = make_job(tmp_path)["model"]
    adapter.validate_requests(requests, model=model, output_spec=TEXT, idempotency_key=KEY, **more)
    return adapter.submit(
        requests, model=model, idempotency_key=KEY, input_fingerprint=FINGERPRINT,
        output_spec=TEXT, **more,
    ).batch_id  # fmt: skip


def test_setup_names_it_in_the_registrys_group():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    group = config["options.entry_points"]["airflow.providers.common.ai.batch_adapters"]
    name, _, place = group.strip().partition(" = ")
    module, _, attribute = place.partition(":")
    assert getattr(import_module(module), attribute) is VLMFlowBatchAdapter
    assert name == VLMFlowBatchAdapter.name
    register_adapter(VLMFlowBatchAdapter)
    assert get_adapter_class("vlmflow", "vlmflow:s3://models/m") is VLMFlowBatchAdapter


def test_a_batch_is_a_job_and_every_request_gets_its_row(adapter, tmp_path):
    requests = [{"prompt": "one"}, {"prompt": "refuse"}, {"prompt": "three", "max_tokens": 7}]
    batch_id = submit(adapter, tmp_path, requests, system_prompt="Be brief.", max_tokens=16)
    state = wait_until(
        lambda: (s := adapter.get_batch(batch_id)).status != "in_progress" and s, "it is done"
    )
    assert (state.status, state.error_message) == ("completed", None)
    assert (state.counts["succeeded"], state.counts["errored"]) == (2, 1)
    assert (tmp_path / "batches" / batch_id / "report.json").exists()

    rows = tmp_path / "rows.jsonl"
    counts, odd = stream_results_to_jsonl(
        adapter=adapter, batch_id=batch_id, output_spec=TEXT, request_count=4,
        custom_id_prefix=KEY, destination=ObjectStoragePath(f"file://{rows}"),
    )  # fmt: skip
    assert (counts["success"], counts["error"], counts["missing"]) == (2, 1, 1)
    assert odd.out_of_range_result_count == odd.duplicate_result_count == 0
    assert '"type": "prompt_too_long"' in rows.read_text()

    since = "2020-01-01T00:00:00+00:00"
    assert adapter.find_orphaned_batch(KEY, FINGERPRINT, since) == batch_id
    assert adapter.find_orphaned_batch(KEY, "e" * 64, since) is None
    assert adapter.find_orphaned_batch(KEY, FINGERPRINT, "2100-01-01T00:00:00+00:00") is None


def test_a_cancelled_batch_stops_and_can_go_on(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_ENGINE_START", "hang")
    batch_id = submit(adapter, tmp_path, [{"prompt": "one"}])
    assert adapter.get_batch(batch_id).status == "in_progress"
    adapter.cancel_batch(batch_id)
    wait_until(lambda: adapter.get_batch(batch_id).status == "cancelled", "it has stopped")
    monkeypatch.delenv("FAKE_ENGINE_START")
    assert submit(adapter, tmp_path, [{"prompt": "one"}]) == batch_id
    wait_until(lambda: adapter.get_batch(batch_id).status == "completed", "it is done")


def test_a_batch_that_cannot_be_done_says_why(adapter, tmp_path):
    model = str(tmp_path / "no-such-model")
    batch_id = adapter.submit(
        [{"prompt": "one"}], model=model, idempotency_key=KEY, input_fingerprint=FINGERPRINT,
        output_spec=TEXT,
    ).batch_id  # fmt: skip
    state = wait_until(
        lambda: (s := adapter.get_batch(batch_id)).status != "in_progress" and s, "it has ended"
    )
    assert state.status == "failed"
    assert "no-such-model" in state.error_message and "exit code 2" in state.error_message


class Answer(BaseModel):
    colour: str


def test_structured_output_is_a_grammar_of_the_engine(adapter):
    spec = build_output_spec(Answer)
    [line] = adapter._lines([{"prompt": "x"}], "m", KEY, spec)
    assert b'"response_format": {"type": "json_schema"' in line
    assert b'"colour"' in line


@pytest.mark.parametrize("host", [None, "", "?python=x", "s3://b/p?pyhton=x"])
def test_a_host_that_says_nothing_is_an_error(host):
    with pytest.raises(LLMBatchInputError, match="must say where batches are put"):
        VLMFlowBatchAdapter(base_url=host)


def test_a_batch_has_limits_and_one_model(adapter, monkeypatch):
    values = {"model": "m", "output_spec": TEXT, "idempotency_key": KEY}
    with pytest.raises(LLMBatchInputError, match="request 0 asks model 'other'"):
        adapter.validate_requests([{"prompt": "x", "model": "vlmflow:other"}], **values)
    monkeypatch.setattr(VLMFlowBatchAdapter, "max_payload_bytes", 10)
    with pytest.raises(LLMBatchLimitExceededError, match="at most 10 bytes"):
        adapter.validate_requests([{"prompt": "x"}], **values)
    monkeypatch.setattr(VLMFlowBatchAdapter, "max_requests", 1)
    with pytest.raises(LLMBatchLimitExceededError, match="at most 1 requests"):
        adapter.validate_requests([{"prompt": "x"}] * 2, **values)


def test_a_batch_that_is_none_raises_at_once(adapter):
    with pytest.raises(ObjectMissingError):
        adapter.iter_results("none")
    assert adapter.get_batch("none").status == "failed"
