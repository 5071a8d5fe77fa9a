"""The rows of a run page's two tables."""

import json
from typing import Any

from vlmflow.job.report import matches
from vlmflow.job.samples import Sample

_MAX_CHARACTERS = 2000  # of a cell; results.parquet has the whole


def sample_rows(samples: list[Sample]) -> list[dict[str, Any]]:
    """A row a sample, with a picture of its first image if any of them has one."""
    has_pictures = any(sample.thumbnail is not None for sample in samples)
    return [_sample_row(sample, has_pictures) for sample in samples]


def failure_rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a failed record."""
    return [
        {
            "class": line["error"]["class"],
            "stage": line["error"]["stage"],
            "id": line["id"],
            "ordinal": line["ordinal"],
            "line": line["line"],
            "message": line["error"]["message"][:_MAX_CHARACTERS],
            "images": ", ".join(image["uri"] for image in line.get("images", [])),
        }
        for line in lines
    ]


def _sample_row(sample: Sample, has_pictures: bool) -> dict[str, Any]:
    line = sample.line
    row: dict[str, Any] = {"id": line["id"]}
    if has_pictures:
        row["image"] = sample.thumbnail if sample.thumbnail is not None else ""
    expected = line.get("expected")
    row |= {
        "prompt": (sample.prompt or "")[:_MAX_CHARACTERS],
        "text": line["text"][:_MAX_CHARACTERS],
        "expected": expected
        if expected is None or isinstance(expected, str)
        else json.dumps(expected),
        "match": None if expected is None else matches(line["text"], expected),
        "finish_reason": line["finish_reason"],
        "prompt_tokens": line["usage"]["prompt_tokens"],
        "completion_tokens": line["usage"]["completion_tokens"],
        "seconds": line["seconds"],
    }
    return row
