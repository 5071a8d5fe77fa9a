"""Looks for the images of some records, without fetching them."""

import heapq
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, Record

NUM_LOOKED_AT = 100  # records whose images are asked for by HEAD
MAX_EXAMPLES = 20  # of what is wrong with a manifest, of each kind


@dataclass(slots=True)
class RecordSampler:
    """Picks records at random, the same ones each time, and counts images."""

    size: int
    num_images: int = 0
    _picked: list[tuple[int, int, Record]] = field(default_factory=list)  # largest hash on top

    def look(self, record: Record) -> None:
        self.num_images += len(record.image_uris)
        digest = blake2b(record.record_id.encode(), digest_size=8).digest()
        item = (-int.from_bytes(digest, "big"), record.ordinal, record)
        if len(self._picked) < self.size:
            heapq.heappush(self._picked, item)
        elif item > self._picked[0]:
            heapq.heapreplace(self._picked, item)

    def picked(self) -> list[Record]:
        """By their hashes: any first ones are a sample too."""
        return [record for _, _, record in sorted(self._picked, reverse=True)]


def look_at_images(
    records: list[Record], fetcher: MediaFetcher, num_threads: int
) -> dict[str, Any]:
    """Ask for each image's size; say how many records have one that cannot be had, and why."""
    with ThreadPoolExecutor(num_threads) as pool:
        looked = list(pool.map(lambda r: [fetcher.look(uri) for uri in r.image_uris], records))
    examples: list[dict[str, Any]] = []
    classes: Counter[str] = Counter()
    sizes: list[int] = []
    for record, found in zip(records, looked, strict=True):
        sizes += [item for item in found if isinstance(item, int)]
        failure = next((item for item in found if isinstance(item, Failure)), None)
        if failure is None:
            continue
        classes[failure.error_class] += 1
        if len(examples) < MAX_EXAMPLES:
            examples.append(
                {"line": record.line, "id": record.record_id, "message": failure.message}
            )
    return {
        "records": len(records),
        "records_failing": classes.total(),
        "classes": dict(sorted(classes.items())),
        "examples": examples,
        "mean_bytes": round(sum(sizes) / len(sizes)) if sizes else None,
    }
