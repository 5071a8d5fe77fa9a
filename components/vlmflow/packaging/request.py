"""`PackageRequest`: what a user says of a model that is to be logged."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from vlmflow.job.generation import check_generation
from vlmflow.job.spec import Tracking, parse_values
from vlmflow.job.store.locate import without_query
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig


class PackageRequest(BaseModel):
    """Fields of the same name as a JobSpec's mean the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str  # folder, owner/name of the model hub, or s3://bucket/prefix
    model_cache: str = ""
    endpoint_url: str | None = None
    engine: PytorchEngineConfig = PytorchEngineConfig()
    generation: GenerationConfig = GenerationConfig()
    tracking: Tracking = Tracking()
    name: str | None = None  # in the registry; None: the model is logged and not registered
    alias: str | None = None  # that means this version from now on
    copy_weights: bool = False  # put the checkpoint's files among the model's

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.alias is not None and self.name is None:
            raise ValueError(f"alias {self.alias!r} is of a registered model; give its name too")
        if self.endpoint_url is not None and without_query(self.endpoint_url) != self.endpoint_url:
            raise ValueError(
                f"endpoint_url {without_query(self.endpoint_url)!r} must have no user, password or "
                "query: it is stored; credentials come from boto3's own chain"
            )
        check_generation(self.generation)
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "PackageRequest":
        """Check plain values. Raises SpecError with one sentence a fault."""
        return parse_values(cls, values)
