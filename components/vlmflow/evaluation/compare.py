"""Compares two runs record by record: A is the old one, B the new one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmflow.evaluation.bootstrap import LEVEL, Scores
from vlmflow.evaluation.evaluate import EvaluationOptions
from vlmflow.evaluation.gate import ALIAS, Gate, Measured, judge_gate
from vlmflow.evaluation.paired import PairedResult, compare_pairs, won
from vlmflow.evaluation.performance import performance
from vlmflow.evaluation.prompts import Asked, Questions
from vlmflow.evaluation.run_scores import Places, RunScores
from vlmflow.evaluation.scores import scored
from vlmflow.job.errors import ManifestError

COMPARISON_SCHEMA_VERSION = 1
MAX_ROWS = 60  # changed answers that are shown
MAX_NAMED = 5  # records in one run only that are named

_OUTCOMES = ("loss", "win", "changed")  # in this order people look at them


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A record whose answers differ; `row` is what comparison.json holds of it."""

    asked: Asked  # of B, or of A where B's record has no image
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    content: dict[str, Any]  # comparison.json
    changed: list[ChangedRow]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Places of the records that both runs have, and of those that only one has."""

    a: Places
    b: Places
    only_a: Places
    only_b: Places


class Comparer:
    """Compares two runs whose answers are scored by the same scorers."""

    def __init__(self, a: RunScores, b: RunScores, options: EvaluationOptions) -> None:
        self._a = a
        self._b = b
        self._options = options
        self._names = [scorer.name for scorer in b.columns.scorers]
        self._pairs = _pair(a, b)
        self._results = {name: self._compare(name) for name in self._names}
        self._performance = {
            "a": performance(a.results.report, _error_rate(a)),
            "b": performance(b.results.report, _error_rate(b)),
        }

    def metrics(self) -> dict[str, Measured]:
        """What a gate may name: scorers over the pairs, and what the reports say."""
        found = {}
        for name, result in self._results.items():
            unknown = Measured(None, None)
            found[name] = Measured(result.mean_a, result.mean_b) if result else unknown
        found.setdefault(ALIAS, found[self._names[0]])
        for name, value in self._performance["a"].items():
            found.setdefault(name, Measured(value, self._performance["b"][name]))
        return found

    def compare(
        self,
        questions: Questions | None,
        *,
        gate: tuple[Gate, str] | None,
        say: Callable[[str], None],
    ) -> Comparison:
        """Put the comparison together. `questions` are B's. Raises SpecError for the gate."""
        judged = None if gate is None else judge_gate(*gate, self.metrics())
        changed = self._changed(questions, say)
        pairs = self._pairs
        content = {
            "schema_version": COMPARISON_SCHEMA_VERSION,
            "compared_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "a": _about(self._a),
            "b": _about(self._b),
            "notes": self._notes(),
            "failed_count_as": self._options.failed,
            "expected_field": self._options.expected_field,
            "bootstrap": {
                "resamples": self._options.num_resamples,
                "seed": self._options.seed,
                "level": LEVEL,
            },
            "records": {
                "in_both": len(pairs.a),
                "only_in_a": self._named(self._a, pairs.only_a),
                "only_in_b": self._named(self._b, pairs.only_b),
                "changed": int(self._is_changed().sum()),
            },
            "scores": {name: _as_dict(result) for name, result in self._results.items()},
            "slices": {field: self._slices(field) for field in self._options.slice_fields},
            "performance": {
                name: {"a": value, "b": other, "ratio": other / value if value and other else None}
                for name, value in self._performance["a"].items()
                for other in [self._performance["b"][name]]
            },
            "rows": [item.row for item in changed],
            "gate": judged,
        }
        return Comparison(content, changed)

    def _column(self, name: str) -> tuple[Scores, Scores]:
        """The scores of all pairs, NAN where a scorer left a record out."""
        a, b = self._a.columns.scores(name), self._b.columns.scores(name)
        return a[self._pairs.a], b[self._pairs.b]

    def _compare(self, name: str, among: NDArray[np.bool_] | None = None) -> PairedResult | None:
        a, b = self._column(name)
        there = scored(a) & scored(b)
        if among is not None:
            there &= among
        options = self._options
        return compare_pairs(
            a[there], b[there], num_resamples=options.num_resamples, seed=options.seed
        )

    def _slices(self, field: str) -> list[dict[str, Any]]:
        """By B's values of a field, the most frequent first."""
        names, codes = self._b.columns.slices(field)
        codes, found = codes[self._pairs.b], []
        for code, value in enumerate(names):
            among = codes == code
            if among.any():
                scores = {name: _as_dict(self._compare(name, among)) for name in self._names}
                found.append({"value": value, "records": int(among.sum()), "scores": scores})
        return sorted(found, key=lambda item: -item["records"])

    def _is_changed(self) -> NDArray[np.bool_]:
        changed: NDArray[np.bool_] = self._a.texts[self._pairs.a] != self._b.texts[self._pairs.b]
        return changed

    def _changed(self, questions: Questions | None, say: Callable[[str], None]) -> list[ChangedRow]:
        """Pairs of different answers: losses and wins by the first scorer, then others."""
        a, b = self._column(self._names[0])
        wins, losses = won(b - a)  # where one is NAN: neither
        changed = self._is_changed()
        groups = (losses & changed, wins & changed, changed & ~wins & ~losses)
        found = [np.flatnonzero(among) for among in groups]
        rooms = _shares([len(indices) for indices in found], MAX_ROWS)
        chosen = [
            (int(index), outcome)
            for indices, room, outcome in zip(found, rooms, _OUTCOMES, strict=True)
            for index in _spread(indices, room)
        ]
        at = [(int(self._pairs.a[i]), int(self._pairs.b[i]), outcome) for i, outcome in chosen]
        answers_a = self._a.pick([place for place, _, _ in at])
        places_b = [place for _, place, _ in at]
        try:
            answers_b = self._b.pick(places_b, questions)
        except ManifestError as error:
            say(f"{error}; the comparison goes on without prompts")
            answers_b = self._b.pick(places_b)
        return [self._row(answers_a[x], x, answers_b[y], y, outcome) for x, y, outcome in at]

    def _row(self, a: Asked, place_a: int, b: Asked, place_b: int, outcome: str) -> ChangedRow:
        expected = b.answer.field(self._options.expected_field)
        if expected is None:
            expected = a.answer.field(self._options.expected_field)

        def scores(run: RunScores, place: int) -> dict[str, float | None]:
            values = {name: float(run.columns.scores(name)[place]) for name in self._names}
            return {name: None if v != v else round(v, 6) for name, v in values.items()}

        images = b.answer.images or a.answer.images
        row = {
            "id": b.answer.record_id,
            "outcome": outcome,
            "image": images[0].uri if images else None,
            "prompt": b.answer.prompt,
            "expected": expected,
            "a": a.answer.text,
            "b": b.answer.text,
            "error_a": a.answer.error_class,
            "error_b": b.answer.error_class,
            "scores_a": scores(self._a, place_a),
            "scores_b": scores(self._b, place_b),
        }
        return ChangedRow(b, row)

    def _named(self, run: RunScores, places: Places) -> dict[str, Any]:
        first = sorted(int(place) for place in places)[:MAX_NAMED]
        found = run.pick(first)
        return {"count": len(places), "examples": [found[p].answer.record_id for p in first]}

    def _notes(self) -> list[str]:
        """What a reader must know before he believes the numbers."""
        notes, pairs = [], self._pairs
        digests = {run.results.manifest_digest for run in (self._a, self._b)}
        if len(digests) == 2 and None not in digests:
            notes.append("The runs are of different manifests; records are paired by id alone.")
        elif None in digests:
            notes.append("Whether both runs are of one manifest is not known; pairs are by id.")
        for name, run in (("A", self._a), ("B", self._b)):
            if run.num_duplicates:
                notes.append(
                    f"{run.num_duplicates:,} records of {name} have an id that came before; "
                    "the first counts."
                )
            for scorer, count in run.columns.faults.items():
                notes.append(
                    f"{scorer} could not score {count:,} answers of {name}; the first: "
                    f"{run.columns.first_fault[scorer]}"
                )
        for name, only in (("A", pairs.only_a), ("B", pairs.only_b)):
            if len(only):
                notes.append(f"{len(only):,} records are in {name} only and count in no score.")
        if not len(pairs.a):
            notes.append("The runs have no record in common.")
        return notes


def _pair(a: RunScores, b: RunScores) -> _Pairs:
    _, at_a, at_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    places_a, places_b = a.places[at_a], b.places[at_b]
    order = np.argsort(places_b, kind="stable")
    return _Pairs(
        places_a[order],
        places_b[order],
        np.delete(a.places, at_a),
        np.delete(b.places, at_b),
    )


def _spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of them, evenly from the first to the last."""
    if len(indices) <= count:
        return indices
    if count == 0:
        return indices[:0]
    return indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]


def _shares(counts: list[int], total: int) -> list[int]:
    """Share `total` out evenly; what one group does not need is the others'."""
    shares, left = [0] * len(counts), total
    for done, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - done))
        left -= shares[index]
    return shares


def _error_rate(run: RunScores) -> float:
    return run.columns.num_failed / run.columns.num_records


def _about(run: RunScores) -> dict[str, Any]:
    report = run.results.report
    return {
        "name": run.results.name,
        "run_id": run.results.run_id,
        "records": run.columns.num_records,
        "failed": run.columns.num_failed,
        "duplicates": run.num_duplicates,
        "manifest_sha256": run.results.manifest_digest,
        "model": None if report is None else report["job"]["model"],
        "finished_at": None if report is None else report["finished_at"],
    }


def _as_dict(result: PairedResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "pairs": result.num_pairs,
        "mean_a": round(result.mean_a, 6),
        "mean_b": round(result.mean_b, 6),
        "difference": round(result.difference, 6),
        "low": round(result.interval.low, 6),
        "high": round(result.interval.high, 6),
        "wins": result.wins,
        "losses": result.losses,
        "ties": result.ties,
        "test": result.test,
        "p_value": result.p_value,
        "is_exact": result.is_exact,
    }
