"""A local folder as a store."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EACCES, EEXIST, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import IO
from uuid import uuid4

from vlmflow.job.errors import StoreError
from vlmflow.job.store.base import (
    ObjectChangedError,
    ObjectForbiddenError,
    ObjectInfo,
    ObjectMissingError,
    ObjectTooLargeError,
)
from vlmflow.job.store.checksum import Checksum
from vlmflow_engine.errors import VlmflowError

_CHUNK_BYTES = 1 << 20


class FolderStore:
    """Keys are paths below a folder. Writes are whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root).rstrip("/")

    def stat(self, key: str) -> ObjectInfo:
        try:
            info = self._path(key).stat()
        except OSError as error:
            raise _reading_error(self._path(key), error) from error
        if not stat.S_ISREG(info.st_mode):  # a folder; a pipe or a device, which may never end
            raise ObjectForbiddenError(f"{self._path(key)} is no file")
        etag = f"{info.st_size}-{info.st_mtime_ns}-{info.st_ino}"
        return ObjectInfo(key, info.st_size, etag)

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        self.stat(key)
        path = self._path(key)
        try:
            with path.open("rb") as file:
                data = file.read(-1 if max_bytes is None else max_bytes + 1)
        except OSError as error:
            raise _reading_error(path, error) from error
        if max_bytes is not None and len(data) > max_bytes:
            raise ObjectTooLargeError(f"{path} has more than {max_bytes:,} bytes")
        return data

    def read_if_changed(
        self, key: str, known_etag: str | None, *, max_bytes: int | None = None
    ) -> tuple[bytes, str] | None:
        etag = self.stat(key).etag  # before reading: a change in between is seen the next time
        return None if etag == known_etag else (self.read(key, max_bytes=max_bytes), etag)

    def stream(self, key: str, *, etag: str | None = None, start: int = 0) -> Iterator[bytes]:
        info = self.stat(key)
        if etag is not None and info.etag != etag:
            raise ObjectChangedError(f"{self._path(key)} has changed")
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise _reading_error(self._path(key), error) from error

    def checksum(self, key: str, etag: str) -> Checksum | None:
        if self.stat(key).etag != etag:
            raise ObjectChangedError(f"{self._path(key)} has changed")
        return None  # a file system has none

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        temporary = self._write_temporary(path, lambda file: file.write(data))
        try:
            os.link(temporary, path)  # atomic, and the file is complete when its name appears
        except FileExistsError:
            return self.read(key) == data
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._replace(self._write_temporary(path, lambda file: file.write(data)), path)

    def write_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with path.open("rb") as source:
            temporary = self._write_temporary(target, lambda file: shutil.copyfileobj(source, file))
        self._replace(temporary, target)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot delete {self._path(key)}: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix.rpartition("/")[0]
        keys = [
            path.relative_to(self.root).as_posix()
            for path in folder.rglob("*")
            if not path.name.startswith(".tmp-") and path.is_file()
        ]
        yield from sorted(key for key in keys if key.startswith(prefix))

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        for key in self.list(prefix):
            with suppress(ObjectMissingError):  # it went away meanwhile
                yield self.stat(key)

    def _path(self, key: str) -> Path:
        if "\0" in key:
            raise ObjectMissingError(f"{key!r} is no file's name")
        return self.root / key

    def _write_temporary(self, path: Path, write: Callable[[IO[bytes]], object]) -> Path:
        temporary = path.with_name(f".tmp-{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            # Trying again will not help, as it may where a disk is full.
            is_final = error.errno in (EACCES, EEXIST, ENOTDIR, EPERM, EROFS)
            kind = ObjectForbiddenError if is_final else StoreError
            raise kind(f"cannot write {path}: {error.strerror}") from error
        return temporary

    def _replace(self, temporary: Path, path: Path) -> None:
        try:
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"cannot write {path}: {error.strerror}") from error


def _reading_error(path: Path, error: OSError) -> VlmflowError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ObjectMissingError(f"{path} does not exist")
    if isinstance(error, PermissionError | IsADirectoryError):
        return ObjectForbiddenError(f"{path} cannot be read: {error.strerror}")
    return StoreError(f"cannot read {path}: {error.strerror}")
