"""The evaluation's table with small pictures, for MLflow."""

from collections.abc import Sequence
from typing import Any

from vlmflow.evaluation.evaluate import Picked
from vlmflow.evaluation.prompts import Asked
from vlmflow.job.media import MediaFetcher
from vlmflow.job.samples import make_samples

_MAX_TEXT = 2000  # characters of a cell


def thumbnails(asked: Sequence[Asked], fetcher: MediaFetcher) -> list[bytes | None]:
    """A small picture of each answer's first image; None if there is none, or another by now."""
    lines, records = [], {}
    for item in asked:
        images = [{"uri": i.uri, "sha256": i.sha256} for i in item.answer.images if i.sha256]
        ordinal = item.answer.ordinal
        lines.append({"id": item.answer.record_id or "", "ordinal": ordinal, "images": images})
        if item.record is not None:
            records[ordinal] = item.record
    return [sample.thumbnail for sample in make_samples(lines, records, fetcher)]


def table_rows(picked: Sequence[Picked], fetcher: MediaFetcher | None) -> list[dict[str, Any]]:
    """Rows for a table in MLflow; `image` is a picture where any row has one."""
    pictures: list[bytes | None] = [None] * len(picked)
    if fetcher is not None:
        pictures = thumbnails([item.asked for item in picked], fetcher)
    rows = []
    for item in picked:
        row: dict[str, Any] = {"id": item.row["id"]}
        for name in ("prompt", "answer", "expected", "error_class"):
            text = item.row[name]
            row[name] = None if text is None else text[:_MAX_TEXT]
        rows.append(row | item.row["scores"])
    return with_pictures(rows, pictures)


def with_pictures(
    rows: Sequence[dict[str, Any]], pictures: Sequence[bytes | None]
) -> list[dict[str, Any]]:
    """Rows with a column `image`, where any has a picture; others stay out then.

    A column of MLflow's tables holds pictures or it does not.
    """
    if not any(pictures):
        return list(rows)
    return [
        row | {"image": picture} for row, picture in zip(rows, pictures, strict=True) if picture
    ]
