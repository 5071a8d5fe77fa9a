"""A few results with small pictures, for people: the same ones whatever the order of work."""

import heapq
import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, Record

MAX_SAMPLES = 50
THUMBNAIL_SIDE = 160
_MAX_PIXELS = 89_478_485


class SamplePicker:
    """Picks MAX_SAMPLES results at random, by a hash of their ids."""

    def __init__(self) -> None:
        self._picked: list[tuple[int, int, dict[str, Any]]] = []  # the largest hash on top

    def add(self, line: dict[str, Any]) -> None:
        if "error" in line:
            return
        digest = blake2b(line["id"].encode(), digest_size=8).digest()
        item = (-int.from_bytes(digest, "big"), line["ordinal"], line)
        if len(self._picked) < MAX_SAMPLES:
            heapq.heappush(self._picked, item)
        else:
            heapq.heappushpop(self._picked, item)

    def picked(self) -> Iterator[dict[str, Any]]:
        """Yield the picked lines in the manifest's order."""
        for _, _, line in sorted(self._picked, key=lambda item: item[1]):
            yield line


@dataclass(frozen=True, slots=True)
class Sample:
    """One result and a picture of its first image."""

    line: dict[str, Any]
    thumbnail: bytes | None  # PNG; None if there is no image, or none to be had any more

    @classmethod
    def of(cls, line: dict[str, Any], fetcher: MediaFetcher) -> "Sample":
        """Fetch the first image of a result once more and make it small."""
        images = line["images"]
        if not images or images[0]["uri"].startswith("data:"):
            return cls(line, None)
        record = Record(line["ordinal"], 0, line["id"], None, (images[0]["uri"],), {}, {})
        fetched = fetcher.fetch(record)
        if isinstance(fetched, Failure) or fetched[0].sha256 != images[0]["sha256"]:
            return cls(line, None)
        return cls(line, make_thumbnail(fetched[0].data))


def make_thumbnail(data: bytes) -> bytes | None:
    """A PNG of at most THUMBNAIL_SIDE pixels a side; None if the bytes cannot be decoded."""
    from vlmflow_engine.errors import MediaError
    from vlmflow_engine.inputs.image_decode import decode_image

    try:
        image = decode_image(data, max_pixels=_MAX_PIXELS)
    except MediaError:
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
