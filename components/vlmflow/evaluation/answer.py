"""`Answer`: what became of one record, as a scorer sees it."""

from dataclasses import dataclass
from typing import Any

EXPECTED = "expected"  # the field that says what answer is expected, unless an option names another


@dataclass(frozen=True, slots=True)
class ImageReference:
    uri: str
    sha256: str | None  # None if the image was never had


@dataclass(frozen=True, slots=True)
class Answer:
    """A record of a results file. Skipped duplicates of an id are none."""

    record_id: str | None  # None if the manifest's line was no record
    ordinal: int
    text: str | None  # None if the record failed
    fields: dict[str, Any]  # what the manifest passed through: expected, metadata, any other
    images: tuple[ImageReference, ...] = ()
    error_class: str | None = None  # why there is no text
    prompt: str | None = None  # None if the manifest is not at hand

    @property
    def is_unreadable(self) -> bool:
        """Whether the manifest's line was no record: what it expected nobody can say."""
        return self.error_class == "invalid_line"

    def field(self, path: str) -> Any:
        """A field by its dotted path, `metadata.split`; None if there is none."""
        value: Any = self.fields
        for name in path.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value


def references(expected: Any) -> list[str]:
    """The texts that will do: of a list any one; {"answer": x}, as in VQA's annotations, is x."""
    items = expected if isinstance(expected, list) else [expected]
    return [str(item["answer"] if _is_annotation(item) else item) for item in items]


def _is_annotation(item: Any) -> bool:
    return isinstance(item, dict) and "answer" in item
