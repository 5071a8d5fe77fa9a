"""Digests of files, kept by path, size and time of change: 15 GB take half a minute to read."""

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from vlmflow.job.cache_folder import cache_folder


class FileDigests:
    """What is known of files, for this process and later ones."""

    def __init__(self) -> None:
        self._path = cache_folder("digests.json")
        self._is_changed = False
        self._known: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError):
            self._known.update(json.loads(self._path.read_text()))

    def digest(self, path: Path) -> str:
        """The sha256 of a file, read if it is not known."""
        key = _key(path)
        if key not in self._known:
            with path.open("rb") as file:
                digest = sha256()
                while chunk := file.read(8 << 20):
                    digest.update(chunk)
            self._put(key, digest.hexdigest())
        return self._known[key]

    def put(self, path: Path, digest: str) -> None:
        """Note what whoever wrote a file knows of it."""
        self._put(_key(path), digest)

    def save(self) -> None:
        if not self._is_changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self._path)
        except OSError:  # a read-only home: the next run computes them again
            pass

    def _put(self, key: str, digest: str) -> None:
        if self._known.get(key) != digest:
            self._known[key] = digest
            self._is_changed = True


def _key(path: Path) -> str:
    info = path.stat()
    return f"{path.resolve()} {info.st_size} {info.st_mtime_ns}"
