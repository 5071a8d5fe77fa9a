"""`ManifestReader`: a manifest of any dialect as records."""

from collections.abc import Iterator
from typing import Protocol

from vlmflow.job.dialects.anthropic import AnthropicDialect
from vlmflow.job.dialects.asked import OneModel
from vlmflow.job.dialects.bedrock import BedrockDialect
from vlmflow.job.dialects.csv_table import CsvTable
from vlmflow.job.dialects.detect import DIALECTS, detect, first_model, head_lines
from vlmflow.job.dialects.gemini import GeminiDialect
from vlmflow.job.dialects.ground_truth import GroundTruthDialect
from vlmflow.job.dialects.item import Item
from vlmflow.job.dialects.json_lines import LineDialect, read_items
from vlmflow.job.dialects.native import NativeDialect
from vlmflow.job.dialects.openai import OpenAIDialect
from vlmflow.job.dialects.parquet_table import ParquetTable
from vlmflow.job.dialects.prefix import PrefixListing, listing_etag
from vlmflow.job.dialects.reading import START, Position, Reading
from vlmflow.job.dialects.sagemaker import SageMakerManifest
from vlmflow.job.dialects.source import ManifestSource
from vlmflow.job.errors import ManifestError, SpecError
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.store.base import ObjectForbiddenError


def locate_manifest(opener: StoreOpener, uri: str, dialect: str = "auto") -> tuple[Store, str]:
    """Return the store of a manifest and its key, which is empty for a prefix."""
    if dialect == "prefix" or (dialect == "auto" and uri.endswith("/")):
        return opener.open(uri), ""
    return opener.locate(uri)


def manifest_etag(store: Store, key: str, dialect: str = "auto") -> str:
    """Return what changes when the manifest does. Raises ManifestError if there is none."""
    if is_prefix(key, dialect):
        return listing_etag(store, key)
    try:
        return store.stat(key).etag
    except (ObjectMissingError, ObjectForbiddenError) as error:
        raise ManifestError(f"manifest '{store.uri}/{key}': {error}") from error


class _Format(Protocol):
    is_seekable: bool

    def items(self, reading: Reading) -> Iterator[Item]: ...


class ManifestReader:
    """Reads the manifest as often as needed, and never a changed one.

    dialect      "auto", or one of DIALECTS
    prompt       the job's, in dialects whose records have none
    model_names  what a line may call the job's model; None: anything, but the same throughout
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        etag: str,
        dialect: str = "auto",
        prompt: str | None = None,
        model_names: frozenset[str] | None = None,
    ) -> None:
        """Read the beginning. Raises ManifestError, or SpecError for an option that is amiss."""
        if dialect not in ("auto", *DIALECTS):
            raise SpecError(f"dialect must be auto, {', '.join(DIALECTS)}, got {dialect!r}")
        if is_prefix(key, dialect):
            self.dialect = "prefix"
            self._format: _Format = PrefixListing(store, key, etag, self._needed(prompt))
            return
        source = ManifestSource(store, key, etag)
        head = head_lines(source)
        self.dialect = detect(source, head) if dialect == "auto" else dialect
        if self.dialect == "parquet":
            if source.codec is not None:
                raise ManifestError(
                    f"manifest {source.uri!r} is Parquet within {source.codec}; unpack it: "
                    "Parquet is compressed by itself"
                )
            self._format = ParquetTable(source, prompt)
        elif self.dialect == "csv":
            self._format = CsvTable(source, prompt)
        elif self.dialect == "sagemaker-manifest":
            self._format = SageMakerManifest(source, self._needed(prompt))
        else:
            model = OneModel(model_names, first_model(head, self.dialect))
            self._format = _JsonLines(source, self._line_dialect(model, prompt))

    @property
    def is_seekable(self) -> bool:
        """Whether `items(start)` costs only what follows `start`."""
        return self._format.is_seekable

    def items(self, start: Position = START) -> Reading:
        """Read the items from `start` on. Iterating raises ManifestError."""
        return Reading(start, self._format.items)

    def _line_dialect(self, model: OneModel, prompt: str | None) -> LineDialect:
        if self.dialect == "ground-truth":
            return GroundTruthDialect(self._needed(prompt))
        if prompt is not None:
            raise SpecError(
                f"the records of a manifest of dialect {self.dialect!r} have prompts of their own; "
                "leave out the job's"
            )
        if self.dialect == "openai":
            return OpenAIDialect(model)
        if self.dialect == "anthropic":
            return AnthropicDialect(model)
        if self.dialect == "bedrock":
            return BedrockDialect(model)
        return GeminiDialect() if self.dialect == "gemini" else NativeDialect()

    def _needed(self, prompt: str | None) -> str:
        if prompt is None:
            raise SpecError(
                f"a manifest of dialect {self.dialect!r} has no prompts; give the job one"
            )
        return prompt


class _JsonLines:
    def __init__(self, source: ManifestSource, dialect: LineDialect) -> None:
        self.is_seekable = source.codec is None
        self._source = source
        self._dialect = dialect

    def items(self, reading: Reading) -> Iterator[Item]:
        chunks = self._source.content(reading.byte, reading.tally)
        return read_items(self._dialect, chunks, reading)


def is_prefix(key: str, dialect: str) -> bool:
    """Whether a manifest is all that lies below a key."""
    return dialect == "prefix" or (dialect == "auto" and (not key or key.endswith("/")))
