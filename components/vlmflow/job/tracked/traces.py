"""The traces of a run page: a few records' ways, as far as they were measured."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.job import layout
from vlmflow.job.samples import Sample
from vlmflow.job.store import Store

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun
    from vlmflow.tracking.traces import TimedSpan, TimedTrace


@dataclass(frozen=True, slots=True)
class TracedRecord:
    """A record's line and times. `sample` has its prompt and picture."""

    times: dict[str, Any]  # of job.record_times.Times
    sample: Sample


def read_times(store: Store) -> dict[int, dict[str, Any]]:
    """The times that all attempts have left, by ordinal; of a record asked again the latest."""
    found: dict[int, dict[str, Any]] = {}
    for key in store.list(layout.RECORD_TIMES):
        found |= {times["ordinal"]: times for times in json.loads(store.read(key))}
    return found


def traced_records(
    times: dict[int, dict[str, Any]], samples: Iterable[Sample]
) -> list[TracedRecord]:
    """Put the two together."""
    return [TracedRecord(times[sample.line["ordinal"]], sample) for sample in samples]


def log_traces(run: "MlflowRun", records: list[TracedRecord], model_id: str | None) -> None:
    """Log them, linked to the run and the model."""
    from vlmflow.tracking.traces import log_timed_traces

    if records:
        log_timed_traces(run, [timed_trace(record) for record in records], model_id)


def timed_trace(record: TracedRecord) -> "TimedTrace":
    """A trace of a record that the engine has answered."""
    from vlmflow.tracking.traces import TimedTrace

    line = record.sample.line
    error = line.get("error")
    usage = line.get("usage", {"prompt_tokens": 0, "completion_tokens": 0})
    return TimedTrace(
        key=str(line["id"]),
        spans=_spans(record),
        error=None if error is None else f"{error['class']}: {error['message']}",
        tokens=(usage["prompt_tokens"], usage["completion_tokens"]),
        picture=record.sample.thumbnail,
    )


def _spans(record: TracedRecord) -> "list[TimedSpan]":
    from vlmflow.tracking.traces import TimedSpan

    line, times, engine = record.sample.line, record.times, record.times["engine"]
    answered, begun, fetched = times["answered"], times["begun"], times["fetched"]
    root = TimedSpan(
        "record",
        "CHAIN",
        begun if begun is not None else times["sent"],
        answered,
        inputs={
            "id": line["id"],
            "prompt": record.sample.prompt,
            "images": [image["uri"] for image in line.get("images", [])],
        },
        outputs=line["text"] if "error" not in line else line["error"],
        attributes={"ordinal": line["ordinal"], "attempts": line.get("attempts", 1)},
    )
    spans = [root]
    if begun is not None and fetched is not None:
        spans.append(TimedSpan("fetch", "TOOL", begun, fetched))
    if "finished" not in engine:  # an engine that tells no times: nothing is made up
        return [*spans, TimedSpan("engine", "LLM", times["sent"], answered)]
    given = answered - engine["finished"]

    def add(name: str, kind: str, start: str | None, end: str, **more: Any) -> None:
        if end in engine and (start is None or start in engine):
            first = given if start is None else given + engine[start]
            spans.append(TimedSpan(name, kind, first, given + engine[end], **more))

    if fetched is not None and given > fetched:
        spans.append(TimedSpan("wait for the engine", "UNKNOWN", fetched, given))
    add("preprocess", "PARSER", None, "prepared")
    add("wait for a place in the batch", "UNKNOWN", "prepared", "scheduled")
    add("prefill", "LLM", "scheduled", "first_token", outputs=_tokens(line, "prompt"))
    if "vision" in engine and spans[-1].name == "prefill":
        start = given + engine["vision"]
        spans.append(
            TimedSpan(
                "vision",
                "EMBEDDING",
                start,
                start + engine["vision_seconds"],
                parent=len(spans) - 1,
                attributes={"images_encoded_together": engine["vision_images"]},
            )
        )
    add("decode", "UNKNOWN", "first_token", "finished", outputs=_tokens(line, "completion"))
    return spans


def _tokens(line: dict[str, Any], kind: str) -> dict[str, int] | None:
    usage = line.get("usage")
    return {"tokens": usage[f"{kind}_tokens"]} if usage else None
