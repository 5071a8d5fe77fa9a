"""SageMaker's ManifestFile: a prefix and the keys below it, one image each.

    [{"prefix": "s3://bucket/images/"}, "a.png", "b/c.png"]

The prompt is the job's, a record's id its relative key.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from vlmflow.job.dialects.item import Item, bad_line
from vlmflow.job.dialects.json_array import ArrayError, array_elements
from vlmflow.job.dialects.messages import images_then_text
from vlmflow.job.dialects.reading import Reading
from vlmflow.job.dialects.source import ManifestSource
from vlmflow.job.errors import ManifestError
from vlmflow.job.record import Record


class SageMakerManifest:
    is_seekable = False

    def __init__(self, source: ManifestSource, prompt: str) -> None:
        self._source = source
        self._prompt = prompt

    def items(self, reading: Reading) -> Iterator[Item]:
        """Yield the items from the reading's position on. Raises ManifestError."""
        try:
            yield from self._items(reading, self._source.content(tally=reading.tally))
        except ArrayError as error:
            raise ManifestError(
                f"manifest {self._source.uri!r}, a JSON array: {error}; it must be "
                '[{"prefix": "s3://..."}, "key", ...]'
            ) from error

    def _items(self, reading: Reading, chunks: Iterable[bytes]) -> Iterator[Item]:
        elements = array_elements(chunks)
        prefix = _prefix(next(elements, None))
        for ordinal, key in enumerate(elements):
            if ordinal < reading.ordinal:
                continue
            reading.ordinal = reading.line = ordinal + 1
            yield self._item(prefix, key, ordinal)

    def _item(self, prefix: str, key: Any, ordinal: int) -> Item:
        number = ordinal + 1
        if not isinstance(key, str) or not key or not _is_text(key):
            reason = "must be a string that is not empty"
            return bad_line(ordinal, number, None, reason, kind="key")
        prompt = images_then_text(1, self._prompt)
        return Record(ordinal, number, key, prompt, (prefix + key,), {}, {})


def _prefix(first: Any) -> str:
    prefix = first.get("prefix") if isinstance(first, dict) else None
    if not isinstance(prefix, str) or not prefix or not _is_text(prefix):
        raise ArrayError("its first element names no 'prefix'")
    return prefix


def _is_text(value: str) -> bool:
    """Half a surrogate pair is no text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
