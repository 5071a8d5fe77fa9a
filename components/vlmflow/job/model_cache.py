"""Models of S3 on this machine's disk: fetched once, checked, and shared by any number of jobs.

    <digest of the URI>/lock              held by whoever fetches
    <digest of the URI>/<version>/        the files; `x.part` is one that is being fetched
    <digest of the URI>/<version>.json    of each file that is complete: size, time, digests
    <digest of the URI>/<version>.used    held, shared, by every job that reads the files

A version is the digest of the listing: names, sizes and ETags. Its files never change, so a job
goes on with those it began with when somebody uploads others; the next job fetches what has
changed, links what has not, and removes the versions that nobody holds.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmflow.job.errors import InterruptedJobError, SpecError, StoreError
from vlmflow.job.file_digests import FileDigests
from vlmflow.job.file_lock import FileLock
from vlmflow.job.model_fetch import FetchedFile, ModelFetch
from vlmflow.job.store import ObjectInfo, Store
from vlmflow.job.store.base import ObjectChangedError, ObjectForbiddenError, ObjectMissingError
from vlmflow_engine.hub import files_to_read

_LOOK_SECONDS = 0.2  # between two tries for the lock


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A folder that stays as it is while this object lives."""

    folder: Path
    held: FileLock


class ModelCache:
    """A folder for models. Any number of processes may share it."""

    def __init__(
        self, folder: Path, *, say: Callable[[str], None], is_stopped: Callable[[], bool]
    ) -> None:
        self._folder = folder
        self._say = say
        self._is_stopped = is_stopped

    def fetch(self, store: Store, name: str) -> CachedModel:
        """Return the model below a store's root, fetched as far as it is not here.

        name  of the place in the cache: the URI, with the endpoint if there is one

        Raises SpecError if there is no model or no room, StoreError, InterruptedJobError.
        """
        objects = _list(store)
        place = self._folder / sha256(name.encode()).hexdigest()[:16]
        version = _version(objects)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = self._wait_for(place / "lock", store.uri)
            try:
                # Before anything is removed: nobody may remove this version from now on.
                held = FileLock(place / f"{version}.used", is_shared=True)
                self._complete(store, objects, place / version)
                _remove_others(place, version)
            finally:
                lock.release()
        except OSError as error:
            raise SpecError(
                f"model {store.uri!r} cannot be kept in {self._folder}: "
                f"{error.strerror or error}; what is fetched stays, name another --model-cache if "
                "there is no room"
            ) from error
        except (ObjectChangedError, ObjectMissingError) as error:
            raise StoreError(
                f"model {store.uri!r} is being changed; run the same command when it is whole"
            ) from error
        except ObjectForbiddenError as error:
            raise SpecError(f"model {store.uri!r} cannot be read: {error}") from error
        return CachedModel(place / version, held)

    def _wait_for(self, path: Path, uri: str) -> FileLock:
        is_told = False
        while True:
            with suppress(BlockingIOError):
                return FileLock(path)
            if not is_told:
                self._say(f"model {uri}: another process is fetching it; waiting")
                is_told = True
            if self._is_stopped():
                raise InterruptedJobError("told to stop while another process fetches the model")
            time.sleep(_LOOK_SECONDS)

    def _complete(self, store: Store, objects: list[ObjectInfo], folder: Path) -> None:
        """Fetch what is not there, or is not as it was fetched."""
        folder.mkdir(exist_ok=True)
        record = _Record(folder.with_suffix(".json"))
        for info in objects:
            if not record.knows(info, folder / info.key):
                _link_from_others(info, folder, record)
        missing = [info for info in objects if not record.knows(info, folder / info.key)]
        if missing:
            self._check_room(store, missing, folder)
            fetch = ModelFetch(store, folder, say=self._say, is_stopped=self._is_stopped)
            fetch.run(missing, done=lambda info, file: record.add(info, folder / info.key, file))
        digests = FileDigests()
        for info in objects:
            digests.put(folder / info.key, record.files[info.key]["sha256"])
        digests.save()

    def _check_room(self, store: Store, missing: list[ObjectInfo], folder: Path) -> None:
        needed = sum(info.num_bytes for info in missing)
        needed -= sum(path.stat().st_size for path in folder.glob("*.part"))
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise SpecError(
                f"model {store.uri!r} has {needed:,} bytes that are not here, but {self._folder} "
                f"has room for {free:,}; free some, or name another --model-cache"
            )


class _Record:
    """A version's JSON file: written anew after every file, so that what is complete is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError, TypeError):
            self.files.update(json.loads(path.read_text()))

    def knows(self, info: ObjectInfo, path: Path) -> bool:
        """Whether a file is the object, and has not been touched since."""
        known = self.files.get(info.key, {})
        with suppress(OSError):
            found = path.stat()
            there = (info.etag, info.num_bytes, found.st_size, found.st_mtime_ns)
            size = known.get("num_bytes")
            return there == (known.get("etag"), size, size, known.get("mtime_ns"))
        return False

    def add(self, info: ObjectInfo, path: Path, file: FetchedFile) -> None:
        self.files[info.key] = {
            "etag": info.etag,
            "num_bytes": info.num_bytes,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": file.sha256,
            "checked_by": file.checked_by,
        }
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.files, indent=1))
        temporary.replace(self.path)


def _list(store: Store) -> list[ObjectInfo]:
    """The objects that a model is read from, as many as there are below the root."""
    try:
        found = {info.key: info for info in store.list_objects("")}
    except (ObjectMissingError, ObjectForbiddenError) as error:
        raise SpecError(f"model {store.uri!r} cannot be read: {error}") from error
    objects = [found[key] for key in sorted(files_to_read(found))]
    if "config.json" not in found:
        raise SpecError(f"model {store.uri!r} is not a checkpoint: there is no config.json in it")
    return objects


def _version(objects: list[ObjectInfo]) -> str:
    listing = [(info.key, info.num_bytes, info.etag) for info in objects]
    return sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _link_from_others(info: ObjectInfo, folder: Path, record: _Record) -> None:
    """Take a file that another version has too."""
    for path in folder.parent.glob("*.json"):
        other, source = _Record(path), path.with_suffix("") / info.key
        if path != record.path and other.knows(info, source):
            target = folder / info.key
            target.unlink(missing_ok=True)
            os.link(source, target)
            known = other.files[info.key]
            record.add(info, target, FetchedFile(known["sha256"], known["checked_by"]))
            return


def _remove_others(place: Path, version: str) -> None:
    """Remove the versions that no job holds. The caller has the lock, so none begins to."""
    for path in place.glob("*.used"):
        if path.stem == version:
            continue
        with suppress(BlockingIOError):
            lock = FileLock(path)
            path.with_suffix(".json").unlink(missing_ok=True)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()
