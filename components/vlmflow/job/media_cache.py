"""Images on this machine's disk, by the digest of their bytes, for the next attempt or job.

    objects/<first digit>/<sha256 of the bytes>   a line of JSON with digest and tag, and the bytes
    names/<first digit>/<sha256 of a name>        a hard link to what the name stood for

One file an image, whatever it is called: to make a file is what a cache costs most. Any number of
processes share a folder: files appear whole, by a rename, and nothing is locked. What is read is
checked against its digest, so a file that a crash left broken is fetched again. The time of change
is that of the last use; what was not used for longest goes when room is wanted.

Writing is a thread's own: to make a file can take longer than to fetch what is in it.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from uuid import uuid4

from vlmflow.job.cache_folder import cache_folder

_MAX_QUEUED_BYTES = 32 << 20  # of images to be written; what comes while the disk is behind is not
_BLOCK_BYTES = 4096  # what a file takes at least
_RECOUNT_SHARE = 16  # other processes write too: count anew after each sixteenth of the limit
_DIGEST = re.compile("[0-9a-f]{64}")
_ABANDONED_SECONDS = 3600.0  # then whoever was to rename a temporary file is gone


@dataclass(order=True, slots=True)
class _File:
    used_at: int  # nanoseconds
    num_bytes: int  # on disk
    paths: list[Path]


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
        file = self._name_file(name)
        try:
            content = file.read_bytes()
            head_bytes = content.index(b"\n") + 1
            head = json.loads(content[:head_bytes])
            digest, tag = str(head["sha256"]), str(head["tag"])
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            digest = tag = ""
            head_bytes = 0
        data = content[head_bytes:]
        if sha256(data).hexdigest() != digest:
            self._remove(file, digest)
            return None
        with suppress(OSError):  # removed since, or another user's
            os.utime(file)
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
        head = json.dumps({"sha256": digest, "tag": tag}).encode() + b"\n"
        name_file, object_file = self._name_file(name), self._object_file(digest)
        try:
            if self._is_off or self._is_linked(name_file, object_file, head):
                return
            if self._has_room(_on_disk(len(head) + len(data))):
                self._write(name_file, head + data)
                with suppress(OSError):  # a disk without links keeps a copy for each name
                    self._link(name_file, object_file)
        except OSError as error:
            self._turn_off(error)
        finally:
            with self._lock:
                self._queued_bytes -= len(data)

    def _is_linked(self, name_file: Path, object_file: Path, head: bytes) -> bool:
        """Let a name stand for what is there already; False if it is not there with this tag."""
        try:
            with object_file.open("rb") as file:
                if file.read(len(head)) != head:
                    return False
            os.utime(object_file)
            self._link(object_file, name_file)
        except OSError:  # not there, gone by now, or under too many names
            return False
        return True

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
        files = sorted(self._files().values())
        self._used_bytes = sum(file.num_bytes for file in files)
        free = shutil.disk_usage(self._folder).free
        limit = min(self._max_bytes, (self._used_bytes + free) // 2)
        if num_bytes > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._used_bytes + num_bytes <= limit:
            return limit
        goal = max(0, limit - limit // 8 - num_bytes)
        for file in files:
            if self._used_bytes <= goal:
                break
            for path in file.paths:
                with suppress(FileNotFoundError):  # another process is at it too
                    if path.stat().st_mtime_ns == file.used_at:
                        path.unlink()
            self._used_bytes -= file.num_bytes
        return limit

    def _files(self) -> "dict[int, _File]":
        """All files by their inodes. Temporary ones that were left behind are removed."""
        abandoned = time.time() - _ABANDONED_SECONDS
        found: dict[int, _File] = {}
        for folder, _, names in os.walk(self._folder):
            for path in (Path(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    info = path.stat()
                    if path.name.startswith(".tmp-") and info.st_mtime < abandoned:
                        path.unlink()
                        continue
                    file = _File(info.st_mtime_ns, _on_disk(info.st_size), [])
                    found.setdefault(info.st_ino, file).paths.append(path)
        return found

    def _write(self, path: Path, data: bytes) -> None:
        self._make(path, lambda temporary: temporary.write_bytes(data))

    def _link(self, there: Path, path: Path) -> None:
        self._make(path, lambda temporary: os.link(there, temporary))

    def _make(self, path: Path, make: Callable[[Path], object]) -> None:
        """Let a file appear, whole, in the place of what is there."""
        temporary = path.with_name(f".tmp-{uuid4().hex}")
        try:
            try:
                make(temporary)
            except FileNotFoundError:  # the first of its folder
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                make(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):  # it is there still if making it failed, or if both were
                temporary.unlink()  # links to one file: then a rename does nothing

    def _remove(self, file: Path, digest: str) -> None:
        """Remove what is broken, under the digest too if that can be one."""
        with suppress(OSError):
            file.unlink()
        if _DIGEST.fullmatch(digest):
            with suppress(OSError):
                self._object_file(digest).unlink()

    def _turn_off(self, error: OSError) -> None:
        self._is_off = True
        self._tell(
            f"images are not kept in {str(self._folder)!r}: {error.strerror}; the job goes on, "
            "and what it asks for again is fetched again"
        )

    def _object_file(self, digest: str) -> Path:
        return self._folder / "objects" / digest[0] / digest

    def _name_file(self, name: str) -> Path:
        # A digest: a URL may hold a signature, and may be longer than a file's name.
        digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / "names" / digest[0] / digest


def default_folder() -> Path:
    """Where images are kept if nobody says otherwise. Raises RuntimeError if there is no home."""
    return cache_folder("media")


def _on_disk(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
