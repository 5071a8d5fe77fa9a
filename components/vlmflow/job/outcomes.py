"""Makes a record's line for the part file, from its answer or from the reason it has none."""

from typing import Any

from vlmflow.job.dedup import Answer
from vlmflow.job.plan import SetAside
from vlmflow.job.record import Failure, FetchedImage, Outcome, Record
from vlmflow.job.store.locate import without_query


def success(
    record: Record,
    images: list[FetchedImage],
    response: dict[str, Any],
    *,
    seconds: float,
    attempts: int,
) -> Outcome:
    """A record with its answer. `response` is the engine's, see vlmflow_engine.wire."""
    line = {
        "id": record.record_id,
        "ordinal": record.ordinal,
        "text": response["text"],
        "finish_reason": response["finish_reason"],
        "usage": {
            "prompt_tokens": response["input_token_len"],
            "completion_tokens": response["generate_token_len"],
            "cached_tokens": response["cached_tokens"],
        },
        "images": _images(images),
        "seconds": round(seconds, 4),
        "attempts": attempts,
        **record.passed_through,
    }
    return Outcome(record.ordinal, line, num_images=len(images))


def duplicate(record: Record, images: list[FetchedImage], answer: Answer) -> Outcome:
    """A record with the answer of another that asked the same. It cost nothing itself."""
    line = {
        "id": record.record_id,
        "ordinal": record.ordinal,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens"), 0),
        "images": _images(images),
        "seconds": 0.0,
        "attempts": 0,
        "deduplicated_of": answer.record_id,
        **record.passed_through,
    }
    return Outcome(record.ordinal, line, num_images=len(images))


def failure(record: Record, reason: Failure) -> Outcome:
    """A record without an answer."""
    line = {
        "id": record.record_id,
        "ordinal": record.ordinal,
        "line": record.line,
        "error": reason.as_dict(),
        "images": [{"uri": without_query(uri)} for uri in record.image_uris],
        **record.passed_through,
    }
    return Outcome(record.ordinal, line, failure=reason)


def set_aside_line(item: SetAside) -> dict[str, Any]:
    """The failure line of a record that the plan set aside."""
    return {
        "id": item.record_id,
        "ordinal": item.ordinal,
        "line": item.line,
        "error": item.failure.as_dict(),
    }


def _images(images: list[FetchedImage]) -> list[dict[str, Any]]:
    return [
        {"uri": image.uri, "sha256": image.sha256, "num_bytes": len(image.data)} for image in images
    ]
