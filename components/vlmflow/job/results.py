"""Writes what users read, `results/` and `failures/`, from the committed parts.

The files are in the manifest's order. Memory holds 24 bytes a record; the lines themselves pass
through a temporary folder.
"""

import json
import re
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from vlmflow.job.crash_points import reached
from vlmflow.job.errors import CountsError, StoreError
from vlmflow.job.layout import FAILURES, RESULTS
from vlmflow.job.ordinals import OrdinalSet
from vlmflow.job.outcomes import set_aside_line
from vlmflow.job.plan import Plan
from vlmflow.job.store import ObjectMissingError, Store

LINES_PER_FILE = 100_000
_VIEW_FILE = re.compile(r"\d{5}\.jsonl")  # what else stands there is not ours to remove


class ResultsView:
    """The committed lines of a job, by ordinal; of several generations the newest."""

    def __init__(
        self, store: Store, part_keys: Sequence[Sequence[str]], plan: Plan, folder: Path
    ) -> None:
        """Download the parts, given by generation, into `folder`.

        Raises CountsError if records lack or are double.
        """
        self._plan = plan
        self._path = folder / "parts.jsonl"
        # Of each ordinal: where its line begins, and -1 if there is none.
        self._offsets = array("q", [-1]) * plan.num_records
        with _naming_a_full_disk(), self._path.open("wb") as file:
            for keys in part_keys:
                seen = OrdinalSet(plan.num_records)
                for key in keys:
                    for line in _read_part(store, key).splitlines(keepends=True):
                        self._place(json.loads(line)["ordinal"], file.tell(), seen, key)
                        file.write(line)
        missing = sum(offset < 0 for offset in self._offsets) - len(plan.set_aside)
        if missing:
            raise CountsError(f"{missing} records of the manifest have no committed line")

    def lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield each record's line, raw and parsed, in the manifest's order."""
        with self._path.open("rb") as file:
            for ordinal, offset in enumerate(self._offsets):
                if offset < 0:
                    content = set_aside_line(self._plan.set_aside[ordinal])
                    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
                    yield raw.encode() + b"\n", content
                else:
                    file.seek(offset)
                    raw_line = file.readline()
                    yield raw_line, json.loads(raw_line)

    def _place(self, ordinal: int, offset: int, seen: OrdinalSet, key: str) -> None:
        if not 0 <= ordinal < len(self._offsets) or ordinal in self._plan.set_aside:
            raise CountsError(f"{key} holds record {ordinal}, which was not asked")
        if ordinal in seen:
            raise CountsError(f"{key} holds record {ordinal}, which is committed twice")
        seen.add(ordinal)
        self._offsets[ordinal] = offset


class ViewWriter:
    """Cuts a stream of lines into files of LINES_PER_FILE and uploads them."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._file: IO[bytes] | None = None
        self._num_lines = 0
        self._num_files = 0
        self._digest, self._num_bytes = sha256(), 0  # of the current file
        self.files: dict[str, dict[str, Any]] = {}  # what was uploaded, by key

    def write(self, line: bytes) -> None:
        with _naming_a_full_disk():
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115
            self._file.write(line)
        self._digest.update(line)
        self._num_bytes += len(line)
        self._num_lines += 1
        if self._num_lines == LINES_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Upload what has gathered. The first file is written even when it is empty."""
        if self._file is None and self._num_files:
            return
        key = f"{self._prefix}{self._num_files:05d}.jsonl"
        if self._file is None:
            self._store.write(key, b"")
        else:
            with _naming_a_full_disk():
                self._file.flush()
            self._store.write_file(key, Path(self._file.name))
            self._file.close()
        reached("view-written")
        self.files[key] = {
            "num_lines": self._num_lines,
            "num_bytes": self._num_bytes,
            "sha256": self._digest.hexdigest(),
        }
        self._file, self._num_lines = None, 0
        self._digest, self._num_bytes = sha256(), 0
        self._num_files += 1

    def close(self) -> None:
        """Upload the last file, and remove what an earlier generation wrote beyond it."""
        self.flush()
        written = {f"{self._prefix}{number:05d}.jsonl" for number in range(self._num_files)}
        for key in list(self._store.list(self._prefix)):
            if key not in written and _VIEW_FILE.fullmatch(key.removeprefix(self._prefix)):
                self._store.delete(key)


def _read_part(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except ObjectMissingError as error:
        raise CountsError(
            f"{error}, but it is committed: it was removed from the output, and its records with it"
        ) from error


@contextmanager
def _naming_a_full_disk() -> Iterator[None]:
    """Tell what the temporary folder refuses in a sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder "
            "with room for all results"
        ) from error


def view_writers(store: Store) -> tuple[ViewWriter, ViewWriter]:
    """Writers for the results and the failures."""
    return ViewWriter(store, RESULTS), ViewWriter(store, FAILURES)


def digest_of_views(views: dict[str, Any]) -> str:
    """Know all that users read again: sha256 over the keys and digests of views.json."""
    digest = sha256()
    for key, about in sorted(views.items()):
        digest.update(f"{key}\0{about['sha256']}\n".encode())
    return digest.hexdigest()
