"""What a run page needs of a job's lines, picked while they pass by in the manifest's order."""

import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmflow.job.dialects.parquet_output import ResultsTable
from vlmflow.job.samples import SamplePicker
from vlmflow.job.spec import Tracking

MAX_FAILURES = 200
Line = dict[str, Any]


class CollectedLines:
    """Samples, failures, traced records and the whole as Parquet, up to its limit. Bounded memory.

    Leaving the context removes the Parquet file.
    """

    def __init__(self, tracking: Tracking, traced: Collection[int] = ()) -> None:
        """`traced` are the ordinals of records that will be shown as traces."""
        self.samples = SamplePicker()
        self.traced: dict[int, Line] = {}
        self._wanted = frozenset(traced)
        self._failures: dict[str, list[Line]] = {}  # by class
        self._tracking = tracking
        self._stack = ExitStack()
        self._table: ResultsTable | None = None
        self._table_stack = ExitStack()
        self.results_path: Path | None = None  # None: switched off, or too large

    def __enter__(self) -> "CollectedLines":
        if self._tracking.enabled and self._tracking.results_max_bytes:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vlmflow-"))
            self.results_path = Path(folder) / "results.parquet"
            self._table = self._table_stack.enter_context(ResultsTable(self.results_path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._table_stack.__exit__(kind, error, traceback)
        self._stack.close()

    def add(self, line: Line) -> None:
        """Take a line of the results or failures."""
        self.samples.add(line)
        if line["ordinal"] in self._wanted:
            self.traced[line["ordinal"]] = line
        if "error" in line:
            group = self._failures.setdefault(line["error"]["class"], [])
            if len(group) < MAX_FAILURES:
                group.append(line)
        if self._table is not None:
            self._table.add(line)
            if self._is_too_large():
                self._give_up_table()

    def end(self) -> None:
        """All lines were given."""
        self._table_stack.close()
        self._table = None
        if self._is_too_large():
            self._give_up_table()

    def failures(self) -> list[Line]:
        """At most MAX_FAILURES, as many of a rare class as of a common one, by class."""
        shares = dict.fromkeys(sorted(self._failures), 0)
        left = MAX_FAILURES
        while left:
            open_classes = [name for name in shares if shares[name] < len(self._failures[name])]
            if not open_classes:
                break
            for name in open_classes[:left]:
                shares[name] += 1
            left -= min(left, len(open_classes))
        return [line for name, share in shares.items() for line in self._failures[name][:share]]

    def _is_too_large(self) -> bool:
        path = self.results_path
        return path is not None and path.stat().st_size > self._tracking.results_max_bytes

    def _give_up_table(self) -> None:
        self._table_stack.close()
        self._table = None
        assert self.results_path is not None
        self.results_path.unlink()
        self.results_path = None
