"""`Results`: the answers of a job, wherever they are."""

import heapq
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.mlflow_artifacts import POINTER, REPORT, RESULTS, RunArtifacts
from vlmflow.evaluation.result_lines import SKIPPED_CLASS, read_lines
from vlmflow.evaluation.result_table import read_table
from vlmflow.job import layout
from vlmflow.job.errors import SpecError
from vlmflow.job.job_file import read_json
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.store.locate import without_query

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_RUNS = "runs:/"
_KINDS = "a job's output, its results/, a results.parquet, or an MLflow run"


class Results:
    """Iterate it as often as needed: answers in rising order of their ordinals."""

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[Answer]],
        *,
        report: dict[str, Any] | None = None,
        store: Store | None = None,
        run_id: str | None = None,
    ) -> None:
        self.name = name  # as it may be shown
        self.report = report  # report.json of the job; None if there is none
        self.store = store  # the job's output; None if the results are elsewhere
        self.run_id = run_id  # of MLflow, if they were named by it
        self._read = read

    @property
    def manifest_digest(self) -> str | None:
        return None if self.report is None else self.report["manifest"]["sha256"]

    def __iter__(self) -> Iterator[Answer]:
        return (answer for answer in self._read() if answer.error_class != SKIPPED_CLASS)


class ResultsOpener:
    """Finds results by what a user calls them. Close it when they are read."""

    def __init__(self, opener: StoreOpener, tracking_uri: str | None = None) -> None:
        self._opener = opener
        self._tracking_uri = tracking_uri
        self._folder = tempfile.TemporaryDirectory(prefix="vlmflow-")
        self._num_files = 0

    def __enter__(self) -> "ResultsOpener":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def open(self, name: str) -> Results:
        """Open a job's output, its results/, a file of results, or an MLflow run.

        Raises SpecError if there is nothing of the kind.
        """
        if name.startswith(_RUNS) or (_RUN_ID.fullmatch(name) and not Path(name).exists()):
            return self._open_run(name.removeprefix(_RUNS).partition("/")[0])
        if name.endswith(".parquet"):
            return self._open_table(name)
        if name.endswith(POINTER):
            store, key = self._opener.locate(name)
            return self._follow(_read_pointer(store, key), name)
        if name.endswith(".jsonl"):
            store, key = self._opener.locate(name)
            return Results(without_query(name), lambda: read_lines(store, [key]))
        return self._open_prefix(name.rstrip("/"))

    def _open_prefix(self, uri: str) -> Results:
        store = self._opener.open(uri)
        if not _has_results(store) and uri.rpartition("/")[2] == layout.RESULTS.rstrip("/"):
            parent = uri.rpartition("/")[0] or "."
            store = self._opener.open(parent)
        if not _has_results(store):
            raise SpecError(
                f"{store.uri} holds no results: there is no {layout.RESULTS} below it; "
                f"give {_KINDS}"
            )
        return open_output(store)

    def _open_table(self, uri: str, digest: str | None = None) -> Results:
        path = self._local(uri, digest)
        return Results(without_query(uri), lambda: read_table(path, uri))

    def _open_run(self, run_id: str) -> Results:
        folder = Path(self._folder.name) / run_id
        folder.mkdir(exist_ok=True)
        artifacts = RunArtifacts(run_id, folder, self._tracking_uri)
        name, report = f"{_RUNS}{run_id}", artifacts.read_json(REPORT)
        table = artifacts.file(RESULTS)
        if table is not None:
            path = table
            return Results(
                name, lambda: read_table(path, f"{name}/{RESULTS}"), report=report, run_id=run_id
            )
        pointer = artifacts.read_json(POINTER)
        if pointer is None and report is not None:
            pointer = {"uri": report["results"]["results"]}
        if pointer is None:
            raise SpecError(
                f"MLflow run {run_id!r} has neither {RESULTS} nor {POINTER} nor {REPORT}: it is no "
                "run of vlmflow, or one that has not finished"
            )
        results = self._follow(pointer, name)
        results.name, results.run_id = name, run_id
        results.report = report or results.report
        return results

    def _follow(self, pointer: Any, name: str) -> Results:
        uri = pointer.get("uri") if isinstance(pointer, dict) else None
        if not isinstance(uri, str):
            raise SpecError(f"{name}: the pointer names no 'uri'")
        if uri.endswith(".parquet"):
            return self._open_table(uri, pointer.get("sha256"))
        return self.open(uri)

    def _local(self, uri: str, digest: str | None) -> Path:
        """A file that is here, downloaded if it was not. Raises SpecError."""
        store, key = self._opener.locate(uri)
        self._num_files += 1
        path, found = Path(self._folder.name) / f"{self._num_files}.parquet", sha256()
        try:
            with path.open("wb") as file:
                for chunk in store.stream(key):
                    found.update(chunk)
                    file.write(chunk)
        except ObjectMissingError as error:
            raise SpecError(f"{error}; give {_KINDS}") from error
        if digest is not None and found.hexdigest() != digest:
            raise SpecError(f"{uri} was changed since the run pointed to it: its sha256 is another")
        return path


def open_output(store: Store) -> Results:
    """The results of a job's output."""
    results = [key for key in store.list(layout.RESULTS) if key.endswith(".jsonl")]
    failures = [key for key in store.list(layout.FAILURES) if key.endswith(".jsonl")]

    def read() -> Iterator[Answer]:
        return heapq.merge(
            read_lines(store, results),
            read_lines(store, failures),
            key=lambda answer: answer.ordinal,
        )

    return Results(store.uri, read, report=read_json(store, layout.REPORT), store=store)


def _read_pointer(store: Store, key: str) -> Any:
    try:
        return json.loads(store.read(key))
    except ValueError as error:
        raise SpecError(f"{store.uri}/{key} is no pointer to results: it is not JSON") from error


def _has_results(store: Store) -> bool:
    return any(key.endswith(".jsonl") for key in store.list(layout.RESULTS))
