"""The scores of one run with what pairs its records with another's: 24 bytes a record more."""

from array import array
from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.evaluate import EvaluationOptions
from vlmflow.evaluation.prompts import Asked, Questions, without_questions
from vlmflow.evaluation.results import Results
from vlmflow.evaluation.scorers import Scorer
from vlmflow.evaluation.scores import ScoreColumns
from vlmflow.job.errors import SpecError

Digests = NDArray[np.uint64]
Places = NDArray[np.int64]


class RunScores:
    """A run's answers, scored in one pass. A record's place is where it came in that pass."""

    def __init__(
        self, results: Results, scorers: Sequence[Scorer], options: EvaluationOptions
    ) -> None:
        """Raises SpecError if there are no answers."""
        self.results = results
        self.columns = ScoreColumns(
            scorers,
            options.slice_fields,
            expected_field=options.expected_field,
            failed_is_wrong=options.failed == "wrong",
        )
        ids, texts = array("Q"), array("Q")
        for answer in results:
            self.columns.add(answer)
            ids.append(_id_digest(answer))
            texts.append(_digest(repr((answer.text, answer.error_class))))
        if not ids:
            raise SpecError(f"{results.name} holds no answers")
        self.texts: Digests = np.frombuffer(texts, dtype=np.uint64)
        # Of an id that comes twice the first record counts; np.unique tells its place.
        self.ids: Digests
        self.places: Places
        self.ids, self.places = np.unique(np.frombuffer(ids, dtype=np.uint64), return_index=True)
        self.num_duplicates = len(ids) - len(self.ids)

    def pick(self, places: Collection[int], questions: Questions | None = None) -> dict[int, Asked]:
        """Read some records again, by place. Raises ManifestError if the manifest is another."""
        wanted, found = set(places), {}
        answers = without_questions(self.results) if questions is None else None
        if answers is None:
            assert questions is not None
            answers = questions.beside(self.results)
        last = max(wanted, default=-1)
        for place, asked in enumerate(answers):
            if place > last:
                break
            if place in wanted:
                found[place] = asked
        return found


def _id_digest(answer: Answer) -> int:
    """A line that is no record has no id; it pairs with the same line of the other run."""
    name = answer.record_id
    return _digest(f"\0{answer.ordinal}" if name is None else name)


def _digest(text: str) -> int:
    # Of a million records two share 64 bits once in 37 million comparisons.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
