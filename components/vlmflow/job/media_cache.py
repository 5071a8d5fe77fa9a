"""Images on this machine's disk, by the digest of their bytes, for the next attempt or job.

    objects/<first two>/<sha256 of the bytes>     the bytes
    names/<first two>/<sha256 of the name>        which bytes a name stood for, and its tag

Any number of processes share a folder: files appear whole, by a rename, and nothing is locked. What
is read is checked against its digest, so a file that a crash left broken is fetched again. The time
of change is that of the last use; what was not used for longest goes when room is wanted.

Writing is a thread's own: to make a file can take longer than to fetch what is in it.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from uuid import uuid4

_MAX_QUEUED_BYTES = 32 << 20  # of images to be written; what comes while the disk is behind is not
_BLOCK_BYTES = 4096  # what a file takes at least
_RECOUNT_SHARE = 16  # other processes write too: count anew after each sixteenth of the limit
_ABANDONED_SECONDS = 3600.0  # then whoever was to rename a temporary file is gone


@dataclass(frozen=True, slots=True)
class CachedImage:
    data: bytes
    sha256: str
    tag: str  # whatever `put` was given: an ETag, or a time


class MediaCache:
    """A folder of at most `max_bytes`, and at most half of what the disk has left.

    A disk that is full or read-only turns it off: `tell` gets one sentence, and nobody is harmed.
    Threads may share it.
    """

    def __init__(self, folder: Path, max_bytes: int, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._tell = tell
        # Python waits for it at its end, so what is queued is written.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="media-cache")
        self._lock = Lock()
        self._queued_bytes = 0
        self._used_bytes = 0  # this and the next are the writer's
        self._bytes_to_recount = 0  # that may be written before the folder is counted again
        self._is_off = False

    def get(self, name: str) -> CachedImage | None:
        """What a name stood for when it was put; None if that is not here, or is broken."""
        if self._is_off:
            return None
        name_file = self._name_file(name)
        try:
            values = json.loads(name_file.read_bytes())
            digest, tag = str(values["sha256"]), str(values["tag"])
            object_file = self._object_file(digest)
            data = object_file.read_bytes()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if sha256(data).hexdigest() != digest:
            with suppress(OSError):
                object_file.unlink()
            return None
        with suppress(OSError):  # in this order: no name is younger than what it stands for
            os.utime(name_file)
            os.utime(object_file)
        return CachedImage(data, digest, tag)

    def put(self, name: str, data: bytes, digest: str, tag: str) -> None:
        """Keep bytes under their digest, and the name that they were found under, soon."""
        with self._lock:
            is_behind = self._queued_bytes + len(data) > max(_MAX_QUEUED_BYTES, len(data))
            if self._is_off or is_behind:
                return
            self._queued_bytes += len(data)
        try:
            self._writer.submit(self._put, name, data, digest, tag)
        except RuntimeError:  # the interpreter ends
            self._is_off = True

    def flush(self) -> None:
        """Wait until all that was put is written."""
        self._writer.submit(lambda: None).result()

    def _put(self, name: str, data: bytes, digest: str, tag: str) -> None:
        content = json.dumps({"sha256": digest, "tag": tag}).encode()
        try:
            if self._is_off or not self._has_room(_on_disk(len(data)) + _on_disk(len(content))):
                return
            self._write(self._name_file(name), content)
            object_file = self._object_file(digest)
            if object_file.exists():
                os.utime(object_file)
            else:
                self._write(object_file, data)
        except OSError as error:
            self._turn_off(error)
        finally:
            with self._lock:
                self._queued_bytes -= len(data)

    def _has_room(self, num_bytes: int) -> bool:
        """Count the bytes in, after removing what must go for them; False if they are too many."""
        if num_bytes > self._max_bytes:
            return False
        if num_bytes > self._bytes_to_recount or self._used_bytes + num_bytes > self._max_bytes:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            limit = self._make_room(num_bytes)
            self._bytes_to_recount = max(num_bytes, limit // _RECOUNT_SHARE)
        self._used_bytes += num_bytes
        self._bytes_to_recount -= num_bytes
        return True

    def _make_room(self, num_bytes: int) -> int:
        """Count the folder, remove an eighth of it if it would be too large; return its limit."""
        files = sorted(self._files())
        self._used_bytes = sum(size for _, size, _ in files)
        free = shutil.disk_usage(self._folder).free
        limit = min(self._max_bytes, (self._used_bytes + free) // 2)
        if num_bytes > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._used_bytes + num_bytes <= limit:
            return limit
        goal = max(0, limit - limit // 8 - num_bytes)
        # Names are touched before what they stand for, so they are never left behind by it.
        for used_at, size, path in files:
            if self._used_bytes <= goal:
                break
            with suppress(FileNotFoundError):  # another process is at it too
                if path.stat().st_mtime_ns == used_at:
                    path.unlink()
            self._used_bytes -= size
        return limit

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Last use, bytes on disk and path of each file; temporary ones left behind are removed."""
        abandoned = time.time() - _ABANDONED_SECONDS
        for kind in ("names", "objects"):
            for folder, _, names in os.walk(self._folder / kind):
                for name in names:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):
                        info = path.stat()
                        if name.startswith(".tmp-") and info.st_mtime < abandoned:
                            path.unlink()
                        else:
                            yield info.st_mtime_ns, _on_disk(info.st_size), path

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".tmp-{uuid4().hex}")
        try:
            try:
                temporary.write_bytes(data)
            except FileNotFoundError:  # the first of its folder
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _turn_off(self, error: OSError) -> None:
        self._is_off = True
        self._tell(
            f"images are not kept in {str(self._folder)!r}: {error.strerror}; the job goes on, "
            "and what it asks for again is fetched again"
        )

    def _object_file(self, digest: str) -> Path:
        return self._folder / "objects" / digest[:2] / digest

    def _name_file(self, name: str) -> Path:
        # A digest: a URL may hold a signature, and may be longer than a file's name.
        digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / "names" / digest[:2] / digest


def default_folder() -> Path:
    """Where images are kept if nobody says otherwise. Raises RuntimeError if there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vlmflow" / "media"


def _on_disk(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
