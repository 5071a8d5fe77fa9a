"""A few results with prompts and small pictures, for people: the same ones in any order of work."""

import heapq
import io
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, Record

if TYPE_CHECKING:
    from PIL import Image

MAX_SAMPLES = 50
THUMBNAIL_SIDE = 160
_NUM_FETCHERS = 8
_DECODING = threading.Lock()  # one large image in memory at a time is enough
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
    """One result, what was asked, and a picture of its first image."""

    line: dict[str, Any]
    prompt: str | None  # None if the manifest is not to be had any more
    thumbnail: bytes | None  # PNG or JPEG; None if there is no image, or none to be had any more

    @classmethod
    def of(cls, line: dict[str, Any], record: Record | None, fetcher: MediaFetcher) -> "Sample":
        """Fetch the first image of a result once more and make it small."""
        prompt = prompt_text(record.prompt) if record is not None else None
        images = line.get("images")
        if not images or "error" in line:
            return cls(line, prompt, None)
        # A data URL stands in the manifest only.
        uri = record.image_uris[0] if record is not None else images[0]["uri"]
        if record is None and uri.startswith("data:"):
            return cls(line, prompt, None)
        fetched = fetcher.fetch(Record(line["ordinal"], 0, line["id"], None, (uri,), {}, {}))
        if isinstance(fetched, Failure) or fetched[0].sha256 != images[0]["sha256"]:
            return cls(line, prompt, None)
        return cls(line, prompt, make_thumbnail(fetched[0].data))


def make_samples(
    lines: Iterable[dict[str, Any]], records: dict[int, Record], fetcher: MediaFetcher
) -> list[Sample]:
    """Make samples of picked lines; their images are fetched a few at a time."""
    with ThreadPoolExecutor(_NUM_FETCHERS, thread_name_prefix="samples") as pool:
        return list(
            pool.map(lambda line: Sample.of(line, records.get(line["ordinal"]), fetcher), lines)
        )


def prompt_text(prompt: Any) -> str:
    """What a record asks, as one text: its only message, or all of them with their roles."""
    texts = [(message["role"], _content_text(message["content"])) for message in prompt]
    if len(texts) == 1:
        return texts[0][1]
    return "\n".join(f"{role}: {text}" for role, text in texts)


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def make_thumbnail(data: bytes) -> bytes | None:
    """A PNG or JPEG of at most THUMBNAIL_SIDE pixels a side, whichever is smaller.

    None if the bytes cannot be decoded.
    """
    from vlmflow_engine.errors import MediaError
    from vlmflow_engine.inputs.image_decode import decode_image

    with _DECODING:
        try:
            image = decode_image(data, max_pixels=_MAX_PIXELS)
        except MediaError:
            return None
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return min(_encode(image, "PNG"), _encode(image, "JPEG", quality=85), key=len)


def _encode(image: "Image.Image", kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
