"""A trace on a real server: its spans, picture and tokens, its run, and that it is logged once."""

import io
import time

import pytest
from PIL import Image

from tests.tracking.test_lifecycle import Register, description
from vlmflow.job.samples import Sample
from vlmflow.job.tracked.traces import TracedRecord, timed_trace
from vlmflow.tracking.lifecycle import connect, open_run
from vlmflow.tracking.traces import log_timed_traces

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

NOW = 1_800_000_000.0
TIMES = {
    "ordinal": 7,
    "begun": NOW,
    "fetched": NOW + 0.5,
    "sent": NOW + 0.6,
    "answered": NOW + 3.7,
    "engine": {
        "prepared": 0.1,
        "scheduled": 0.2,
        "vision": 0.2,
        "vision_seconds": 0.3,
        "vision_images": 4,
        "first_token": 1.0,
        "finished": 3.0,
    },
}
LINE = {
    "id": "r7",
    "ordinal": 7,
    "text": "a cat",
    "usage": {"prompt_tokens": 20, "completion_tokens": 3},
    "images": [{"uri": "s3://b/a.png", "sha256": "x", "num_bytes": 3}],
    "attempts": 1,
}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def record(line=LINE, times=TIMES) -> TracedRecord:
    return TracedRecord(times, Sample(line, "What is it?", picture()))


def spans(traced: TracedRecord) -> dict[str, tuple[float, float]]:
    return {
        span.name: (round(span.start - NOW, 3), round(span.end - NOW, 3))
        for span in timed_trace(traced).spans
    }


def test_spans_are_what_was_measured():
    # The engine had it for 3 s before 3.7.
    assert spans(record()) == {
        "record": (0.0, 3.7),
        "fetch": (0.0, 0.5),
        "wait for the engine": (0.5, 0.7),
        "preprocess": (0.7, 0.8),
        "wait for a place in the batch": (0.8, 0.9),
        "prefill": (0.9, 1.7),
        "vision": (0.9, 1.2),
        "decode": (1.7, 3.7),
    }


def test_what_was_not_measured_has_no_span():
    no_vision = {n: s for n, s in TIMES["engine"].items() if not n.startswith("vision")}
    assert "vision" not in spans(record(times=TIMES | {"engine": no_vision}))
    assert spans(record(times=TIMES | {"engine": {}})) == {
        "record": (0.0, 3.7),
        "fetch": (0.0, 0.5),
        "engine": (0.6, 3.7),
    }
    refused = TIMES | {"engine": {"prepared": 0.1, "finished": 0.2}, "answered": NOW + 1}
    assert set(spans(record(times=refused))) == {
        "record", "fetch", "wait for the engine", "preprocess",
    }  # fmt: skip


def test_a_trace_is_linked_to_its_run_with_picture_and_tokens_and_logged_once(server):
    client = connect(server)
    run = open_run(client, description("traces"), Register())
    error = {"stage": "decode", "class": "image_corrupt", "message": "no picture"}
    failed = {"id": "r8", "ordinal": 8, "line": 9, "error": error}
    traces = [timed_trace(record()), timed_trace(record(failed, TIMES | {"ordinal": 8}))]
    log_timed_traces(run, traces, "m-1234")
    log_timed_traces(run, traces, "m-1234")
    deadline = time.monotonic() + 20
    found = []
    while len(found) < 2 and time.monotonic() < deadline:
        found = client.search_traces(locations=[run.experiment_id], run_id=run.run_id)
    by_key = {trace.info.client_request_id: trace for trace in found}
    assert sorted(by_key) == ["r7", "r8"]
    trace = by_key["r7"]
    assert trace.info.state == "OK" and by_key["r8"].info.state == "ERROR"
    assert trace.info.token_usage == {"input_tokens": 20, "output_tokens": 3, "total_tokens": 23}
    assert trace.info.execution_duration == 3700
    assert trace.info.trace_metadata["mlflow.modelId"] == "m-1234"
    by_name = {span.name: span for span in trace.data.spans}
    root = by_name["record"]
    assert root.outputs == "a cat" and root.inputs["prompt"] == "What is it?"
    assert by_name["vision"].parent_id == by_name["prefill"].span_id
    assert by_name["vision"].attributes["images_encoded_together"] == 4
    assert by_name["decode"].parent_id == root.span_id
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.attachments import Attachment
    from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace

    reference = Attachment.parse_ref(root.inputs["image"])
    uri = get_artifact_uri_for_trace(trace.info)
    path = get_artifact_repository(uri, tracking_uri=server).download_artifacts(
        f"attachments/{reference['attachment_id']}"
    )
    with open(path, "rb") as file:
        assert file.read() == picture()
