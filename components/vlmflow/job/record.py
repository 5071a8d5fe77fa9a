"""A line of the manifest as a `Record`, and what becomes of it."""

from dataclasses import asdict, dataclass
from typing import Any

RESULT_SCHEMA_VERSION = 1

# What our own result and failure lines say; a manifest's extra fields may not bear these names.
RESULT_FIELDS = frozenset(
    (
        *("ordinal", "text", "finish_reason", "usage", "seconds", "attempts", "error", "line"),
        "deduplicated_of",
    )
)


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to ask."""

    ordinal: int  # place among the manifest's records, from 0
    line: int  # line number in the manifest, from 1
    record_id: str
    prompt: Any  # a text, or messages with each image as {"$image": index}
    image_uris: tuple[str, ...]
    generation: dict[str, Any]  # overrides of the job's generation config
    passed_through: dict[str, Any]  # the user's fields, copied to the result


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """The bytes of an image, and their name in the result."""

    uri: str
    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record has no answer."""

    stage: str  # manifest, fetch, decode, prepare or generate
    error_class: str
    message: str
    retryable: bool = False
    attempts: int = 1

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {"class" if key == "error_class" else key: value for key, value in values.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished record: its line for the part file, and what is counted."""

    ordinal: int
    line: dict[str, Any]
    failure: Failure | None = None
    num_images: int = 0

    @property
    def is_success(self) -> bool:
        return self.failure is None
