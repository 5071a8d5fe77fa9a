"""Results in the shapes of other batch systems, beside our own: below `outputs/<dialect>/`.

    openai      output.jsonl, and errors.jsonl for the records without an answer
    anthropic   results.jsonl
    bedrock     manifest.jsonl.out, and manifest.json.out with the counts
    gemini      predictions.jsonl, and errors.jsonl
    parquet     results.parquet

Each file is written whole, in the manifest's order.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from vlmflow.job.dialects.bedrock_output import MANIFEST_OUT, BedrockCounts
from vlmflow.job.dialects.job_facts import JobFacts
from vlmflow.job.dialects.parquet_output import ResultsTable
from vlmflow.job.dialects.writers import LINE_WRITERS, parse_original
from vlmflow.job.layout import OUTPUTS, dump
from vlmflow.job.manifest import Manifest
from vlmflow.job.plan import Plan
from vlmflow.job.store import Store

_FILES = {
    "openai": ("output.jsonl", "errors.jsonl"),
    "anthropic": ("results.jsonl", "results.jsonl"),
    "bedrock": ("manifest.jsonl.out", "manifest.jsonl.out"),
    "gemini": ("predictions.jsonl", "errors.jsonl"),
}


class _Output(Protocol):
    def add(self, original: dict[str, Any] | None, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class OutputDialects:
    """Takes every line of the job, in the manifest's order, and writes the dialects asked for."""

    def __init__(
        self,
        names: tuple[str, ...],
        store: Store,
        manifest: Manifest,
        plan: Plan,
        facts: JobFacts,
        folder: Path,
    ) -> None:
        """`folder` is for what is being written."""
        self._stack = ExitStack()
        self._outputs: list[_Output] = []
        for name in sorted(set(names)):
            place = folder / name
            place.mkdir()
            output: _Output = (
                _Table(store, place) if name == "parquet" else _Lines(name, store, facts, place)
            )
            self._stack.callback(output.close)
            self._outputs.append(output)
        self._originals = _originals(manifest, plan) if self._outputs else iter(())

    def add(self, line: dict[str, Any]) -> None:
        """Take a line of the results or failures. Raises ManifestError if the manifest is gone."""
        if self._outputs:
            original = parse_original(next(self._originals))
            for output in self._outputs:
                output.add(original, line)

    def close(self) -> None:
        """Upload what was written."""
        self._stack.close()


class _Lines:
    def __init__(self, name: str, store: Store, facts: JobFacts, folder: Path) -> None:
        self._name = name
        self._store = store
        self._facts = facts
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {
            file: (folder / file).open("wb") for file in dict.fromkeys(_FILES[name])
        }
        self._counts = BedrockCounts()

    def add(self, original: dict[str, Any] | None, line: dict[str, Any]) -> None:
        content = LINE_WRITERS[self._name](original, line, self._facts)
        file = self._files[_FILES[self._name]["error" in line]]
        file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._counts.add(line)

    def close(self) -> None:
        for name, file in self._files.items():
            file.close()
            self._store.write_file(f"{OUTPUTS}{self._name}/{name}", self._folder / name)
        if self._name == "bedrock":
            key = f"{OUTPUTS}bedrock/{MANIFEST_OUT}"
            self._store.write(key, dump(self._counts.as_dict()))


class _Table:
    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._path = folder / "results.parquet"
        self._stack = ExitStack()
        self._table = self._stack.enter_context(ResultsTable(self._path))

    def add(self, original: dict[str, Any] | None, line: dict[str, Any]) -> None:
        self._table.add(line)

    def close(self) -> None:
        self._stack.close()
        self._store.write_file(f"{OUTPUTS}parquet/results.parquet", self._path)


def _originals(manifest: Manifest, plan: Plan) -> Iterator[bytes | None]:
    """The manifest's own line of each record; None where records are no lines."""
    reading = manifest.read(plan)
    for _ in reading:
        yield reading.raw
