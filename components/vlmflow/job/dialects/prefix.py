"""No manifest at all: the images below a prefix or in a folder, and the job's one prompt.

A record's id is its key, relative to the prefix's folder. Of the listing, keys and sizes make the
digest that a job is known by, and the ETags the one by which a change is seen.
"""

import json
from collections.abc import Iterator
from hashlib import sha256

from vlmflow.job.dialects.item import Item, bad_line
from vlmflow.job.dialects.messages import images_then_text
from vlmflow.job.dialects.reading import Reading
from vlmflow.job.dialects.source import changed
from vlmflow.job.dialects.temporary import TemporaryPath
from vlmflow.job.errors import ManifestError
from vlmflow.job.record import Record
from vlmflow.job.store import ObjectInfo, ObjectMissingError, Store
from vlmflow.job.store.base import ObjectForbiddenError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


def listing_etag(store: Store, prefix: str) -> str:
    """Digest the listing of the images below a prefix. Raises ManifestError."""
    digest = sha256()
    for info in _images(store, prefix):
        digest.update(_line(info))
    return digest.hexdigest()


class PrefixListing:
    """The listing is taken once, into a temporary file, and then read as often as needed."""

    is_seekable = False

    def __init__(self, store: Store, prefix: str, etag: str, prompt: str) -> None:
        self._store = store
        self._prefix = prefix
        self._etag = etag
        self._prompt = prompt
        self._listing: TemporaryPath | None = None

    def items(self, reading: Reading) -> Iterator[Item]:
        """Yield the items from the reading's position on. Raises ManifestError."""
        folder = self._prefix.rpartition("/")[0]
        num_cut = len(folder) + 1 if folder else 0
        with self._taken().path.open("rb") as listing:
            for ordinal, line in enumerate(listing):
                key, num_bytes, _ = json.loads(line)
                reading.tally.add(f"{json.dumps(key)} {num_bytes}\n".encode())
                if ordinal < reading.ordinal:
                    continue
                reading.ordinal = reading.line = ordinal + 1
                yield self._item(key, key[num_cut:], ordinal)

    def _item(self, key: str, record_id: str, ordinal: int) -> Item:
        number = ordinal + 1
        try:
            key.encode()
        except UnicodeEncodeError:  # how Python spells a file's name that is not UTF-8
            return bad_line(ordinal, number, None, "the name is not UTF-8", kind="image")
        prompt = images_then_text(1, self._prompt)
        return Record(ordinal, number, record_id, prompt, (f"{self._store.uri}/{key}",), {}, {})

    def _taken(self) -> TemporaryPath:
        """The listing's file. Raises ManifestError if it is not what it was."""
        if self._listing is None:
            target, digest = TemporaryPath(), sha256()
            with target.path.open("wb") as file:
                for info in _images(self._store, self._prefix):
                    line = _line(info)
                    digest.update(line)
                    file.write(line)
            if digest.hexdigest() != self._etag:
                raise changed(f"{self._store.uri}/{self._prefix}")
            self._listing = target
        return self._listing


def _images(store: Store, prefix: str) -> Iterator[ObjectInfo]:
    try:
        for info in store.list_objects(prefix):
            if info.key.lower().endswith(SUFFIXES):
                yield info
    except (ObjectMissingError, ObjectForbiddenError) as error:
        raise ManifestError(f"manifest {store.uri}/{prefix}: {error}") from error


def _line(info: ObjectInfo) -> bytes:
    return json.dumps([info.key, info.num_bytes, info.etag]).encode() + b"\n"
