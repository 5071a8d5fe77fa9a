"""Lays the manifest's prompts beside the answers: both are in the order of the ordinals."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.evaluation.answer import Answer
from vlmflow.job.dialects import ManifestReader, locate_manifest, manifest_etag
from vlmflow.job.errors import ManifestError
from vlmflow.job.record import Record
from vlmflow.job.samples import prompt_text
from vlmflow.job.store import StoreOpener


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer and the record it answers; None if the manifest is not at hand."""

    answer: Answer
    record: Record | None


class Questions:
    """A manifest that is read again for what was asked."""

    def __init__(self, opener: StoreOpener, uri: str, spec: dict[str, Any] | None = None) -> None:
        """`spec` is the JobSpec of the job, for how the manifest was read then.

        Raises ManifestError if there is no manifest.
        """
        self.uri = uri
        options = spec or {}
        dialect = options.get("dialect", "auto")
        store, key = locate_manifest(opener, uri, dialect)
        self._reader = ManifestReader(
            store,
            key,
            etag=manifest_etag(store, key, dialect),
            dialect=dialect,
            prompt=options.get("prompt"),
            model_names=frozenset(options.get("model_names", ())) or None,
        )

    def beside(self, answers: Iterable[Answer]) -> Iterator[Asked]:
        """Yield each answer with its prompt, and with the fields that it lacks.

        Answers come in rising order of ordinals. Raises ManifestError.
        """
        items = iter(self._reader.items())
        item = next(items, None)
        for answer in answers:
            while item is not None and item.ordinal < answer.ordinal:
                item = next(items, None)
            if item is None or item.ordinal != answer.ordinal or not isinstance(item, Record):
                yield Asked(answer, None)
                continue
            self._check_is_same(item, answer)
            fields = {**item.passed_through, **answer.fields}
            yield Asked(replace(answer, prompt=prompt_text(item.prompt), fields=fields), item)

    def _check_is_same(self, record: Record, answer: Answer) -> None:
        """A job may have put -2, -3, ... behind an id that came twice."""
        if answer.record_id is None or not answer.record_id.startswith(record.record_id):
            raise ManifestError(
                f"manifest {self.uri!r} is not the one of these results: its record "
                f"{answer.ordinal} is {record.record_id!r}, theirs {answer.record_id!r}; "
                "--manifest names another, --manifest none does without"
            )


def without_questions(answers: Iterable[Answer]) -> Iterator[Asked]:
    """The same where there is no manifest."""
    return (Asked(answer, None) for answer in answers)
