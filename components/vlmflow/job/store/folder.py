"""A local folder as a store."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from vlmflow.job.errors import StoreError
from vlmflow.job.store.base import (
    ObjectChangedError,
    ObjectForbiddenError,
    ObjectInfo,
    ObjectMissingError,
    ObjectTooLargeError,
)
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
        return ObjectInfo(key, info.st_size, f"{info.st_size}-{info.st_mtime_ns}")

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                data = file.read(-1 if max_bytes is None else max_bytes + 1)
        except OSError as error:
            raise _reading_error(path, error) from error
        if max_bytes is not None and len(data) > max_bytes:
            raise ObjectTooLargeError(f"{path} has more than {max_bytes:,} bytes")
        return data

    def stream(self, key: str, *, etag: str | None = None) -> Iterator[bytes]:
        if etag is not None and self.stat(key).etag != etag:
            raise ObjectChangedError(f"{self._path(key)} has changed")
        try:
            with self._path(key).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise _reading_error(self._path(key), error) from error

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        temporary = self._write_temporary(path, data)
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
        self._replace(self._write_temporary(path, data), path)

    def write_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        self._replace(self._write_temporary(target, path.read_bytes()), target)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot delete {self._path(key)}: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._path(prefix).parent
        below = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in below:
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not path.name.startswith(".tmp-"):
                yield key

    def _path(self, key: str) -> Path:
        return self.root / key

    def _write_temporary(self, path: Path, data: bytes) -> Path:
        temporary = path.with_name(f".tmp-{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
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
