"""`JobSpec`: all that a user says about a job, and the one contract that every face speaks."""

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlmflow.job.allowed_s3 import parse_place
from vlmflow.job.errors import SpecError
from vlmflow.job.generation import check_generation
from vlmflow.job.spec_faults import describe_faults
from vlmflow.job.store.locate import without_query
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig

Dialect = Literal[
    "auto",
    "native",
    "openai",
    "anthropic",
    "bedrock",
    "gemini",
    "ground-truth",
    "sagemaker-manifest",
    "csv",
    "parquet",
    "prefix",
]
OutputDialect = Literal["openai", "anthropic", "bedrock", "gemini", "parquet"]

_Model = TypeVar("_Model", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(_Part):
    """How much of what is allowed. Changing one between attempts keeps the job the same."""

    max_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1  # of all records
    min_records: Annotated[int, Field(ge=1)] = 100  # finished before that share ends a job early
    max_image_bytes: Annotated[int, Field(ge=1)] = 64 << 20  # of one file
    num_fetchers: Annotated[int, Field(ge=1, le=256)] = 16  # images fetched at the same time
    commit_seconds: Annotated[float, Field(gt=0, le=30)] = 10.0  # a kill loses no more than this
    commit_records: Annotated[int, Field(ge=1, le=1000)] = 1000
    grace_seconds: Annotated[float, Field(ge=0)] = 25.0  # after SIGTERM, for what is in flight
    engine_silence_seconds: Annotated[float, Field(gt=0)] = 600.0  # then it counts as hung
    engine_load_seconds: Annotated[float, Field(gt=0)] = 3600.0  # until it is ready; then hung too


class Media(_Part):
    """Where images may come from, and what is kept of them. Changing it keeps the job the same."""

    # s3://bucket or s3://bucket/prefix, beside the bucket of a manifest on S3
    allowed_s3: tuple[str, ...] = ()
    allow_http: bool = False  # http(s), from public addresses only
    allowed_media_domains: tuple[str, ...] | None = None  # hosts of http(s); None: any public one
    cache: str = ""  # folder; empty: vlmflow/media in the user's cache folder
    cache_bytes: Annotated[int, Field(ge=0)] = 10 << 30  # on disk; 0: nothing is kept

    @model_validator(mode="after")
    def _check(self) -> Self:
        for uri in self.allowed_s3:
            try:
                parse_place(uri)
            except SpecError as error:
                raise ValueError(f"allowed_s3: {error}") from error
        if self.allowed_media_domains is not None and not self.allow_http:
            raise ValueError("allowed_media_domains are of http(s); set allow_http too")
        return self


class Tracking(_Part):
    """Where MLflow is. Without a URI, MLflow's own environment decides."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "vlmflow"
    results_max_bytes: Annotated[int, Field(ge=0)] = 100_000_000  # of results.parquet; else a link
    num_traces: Annotated[int, Field(ge=0, le=1000)] = 50  # records of a job shown step by step
    end_seconds: Annotated[float, Field(gt=0)] = 60.0  # for the run page, once the job is done


class EvaluationSpec(_Part):
    """How good the answers are, told when all are there. Changing it keeps the job the same."""

    scorers: str = ""  # as in `vlmflow evaluate --scorers`; empty: nothing is evaluated
    slices: tuple[str, ...] = ()  # fields by whose values scores are told too
    expected_field: str = "expected"  # what the manifest calls the expected answer
    failed: Literal["wrong", "leave-out"] = "wrong"  # what records without an answer count as
    judge_model: str | None = None  # checkpoint folder, or a URI that MLflow's judges know
    judge_prompt: str | None = None  # file with the judge's prompt; None: our own


class JobSpec(_Part):
    """One job."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    name: str = ""  # folder below output; empty: the manifest's file name
    manifest: str  # s3:// or a path
    dialect: Dialect = "auto"  # of the manifest
    prompt: str | None = None  # of all records, in dialects whose records have none
    model_names: tuple[str, ...] = ()  # by which a manifest may call the model; empty: any one
    duplicates: Literal["first", "fail", "suffix"] = "first"  # of an id: which are kept
    # Folder of a checkpoint, owner/name of the model hub, s3://bucket/prefix, or
    # models:/name/version of an MLflow registry.
    model: str
    # Take options that are at their defaults from what was logged with a model of a registry.
    use_stored_options: bool = True
    # Where models of S3 are kept; empty: $VLMFLOW_MODEL_CACHE, else vlmflow/models in the user's
    # cache folder.
    model_cache: str = ""
    output: str  # s3:// or a folder
    output_dialects: tuple[OutputDialect, ...] = ()  # in which results are written too
    limit: Annotated[int | None, Field(ge=1)] = None  # only the first records of the manifest
    num_shards: Annotated[int, Field(ge=1, le=10_000)] = 1  # that the manifest is cut into
    # Of one worker's device, in any currency; the report then says what the job cost.
    price_per_hour: Annotated[float | None, Field(ge=0)] = None
    seed: int = 0  # with a record's id it decides what is sampled for it
    generation: GenerationConfig = GenerationConfig()
    engine: PytorchEngineConfig = PytorchEngineConfig()
    endpoint_url: str | None = None  # of the S3 store; None: AWS
    deduplicate: bool = True  # ask once what several records of a shard ask alike
    media: Media = Media()
    limits: Limits = Limits()
    tracking: Tracking = Tracking()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        if not self.name:
            stem = PurePosixPath(self.manifest.rstrip("/")).name.split(".")[0]
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128] or "job"
            object.__setattr__(self, "name", name)
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, '.', '_' and '-', got {self.name!r}")
        if self.endpoint_url is not None and without_query(self.endpoint_url) != self.endpoint_url:
            raise ValueError(
                f"endpoint_url {without_query(self.endpoint_url)!r} must have no user, password or "
                "query; credentials come from boto3's own chain"
            )
        check_generation(self.generation)
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "JobSpec":
        """Check plain values. Raises SpecError with one sentence a fault."""
        return parse_values(cls, values)

    def public_values(self) -> dict[str, Any]:
        """The spec as it may be stored and shown: without a tracking URI that holds a password.

        Who finishes such a job is told the URI again, or has it in MLFLOW_TRACKING_URI.
        """
        values = self.model_dump(mode="json")
        uri = self.tracking.uri
        if uri is not None and without_query(uri) != uri:
            values["tracking"]["uri"] = None
        return values

    def canonical_json(self) -> str:
        """The same spec gives the same bytes, whoever made it."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_values(kind: type[_Model], values: dict[str, Any]) -> _Model:
    """Make a model of plain values. Raises SpecError with one sentence a fault."""
    try:
        return kind.model_validate(values)
    except ConfigError as error:
        raise SpecError(str(error)) from error
    except ValidationError as error:
        raise SpecError(describe_faults(kind, error)) from error
