"""The scorer `judge` in a comparison: the marks that `vlmflow evaluate` has stored."""

import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path

from vlmflow.evaluation.judge import JudgedScorer
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.scorers import Scorer
from vlmflow.evaluation.scorers.parse import Wording
from vlmflow.evaluation.scores import NAN
from vlmflow.job import layout
from vlmflow.job.errors import SpecError
from vlmflow.job.store import ObjectMissingError


def stored_judge(results: Results) -> Callable[[Wording], Scorer]:
    """What makes scorers of the marks in a run's evaluation.parquet."""

    def make(wording: Wording) -> Scorer:
        """Raises SpecError if there are none."""
        import pyarrow.parquet

        column = f"score.{wording.name}"
        if results.store is None:
            raise _missing(results, column)
        with tempfile.TemporaryDirectory(prefix="vlmflow-") as folder:
            path = Path(folder) / "evaluation.parquet"
            try:
                with path.open("wb") as file:
                    file.writelines(results.store.stream(layout.EVALUATION_TABLE))
            except ObjectMissingError as error:
                raise _missing(results, column) from error
            if column not in pyarrow.parquet.read_schema(path).names:
                raise _missing(results, column)
            table = pyarrow.parquet.read_table(path, columns=["ordinal", column])
        marks = array("d")
        for ordinal, mark in zip(*(c.to_pylist() for c in table.columns), strict=True):
            marks.extend([NAN] * (ordinal - len(marks)))
            marks.append(NAN if mark is None else mark)
        return JudgedScorer(wording.name, marks)

    return make


def _missing(results: Results, column: str) -> SpecError:
    return SpecError(
        f"{results.name} has no evaluation.parquet with {column!r}; let its answers be "
        "judged first: vlmflow evaluate --scorers judge --judge-model MODEL"
    )
